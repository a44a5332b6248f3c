"""Draw what every method keeps of one picture of the testbed, for the methods' pages.

    python tools/draw_methods.py [NAME...]

Writes ``docs/methods/pictures/NAME.png`` and ``captions.json`` beside them. Pixels may differ from machine to machine, so
that nothing compares them; a method without its picture fails a test.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch

from foveate import Plan, compress, lens, registry, testbed
from foveate.bench.runner import prepared

FOLDER = Path(__file__).resolve().parents[1] / "docs" / "methods" / "pictures"
SAMPLE, SLICE = "reading-short-0002", "reading-short"
KEEP, SIDE = 64, 288


def main(names: list[str]) -> None:
    """Draw these methods, or all."""
    model, processor = testbed.load()
    sample = next(s for s in testbed.samples([SLICE]) if s.id == SAMPLE)
    batch = testbed.inputs(processor, [sample])
    fed = prepared(model, batch)
    shown = lens.seen(sample.images, batch, processor)[0]
    FOLDER.mkdir(parents=True, exist_ok=True)
    path = FOLDER / "captions.json"
    captions: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    known = registry.classes()
    captions = {name: caption for name, caption in captions.items() if name in known}
    (plain,) = said(model, processor, fed)
    shown.resize((SIDE, SIDE)).quantize(256).save(FOLDER / "_uncompressed.png", optimize=True)
    for name in names or list(known):
        plan = Plan.of(name, KEEP)
        with compress(model, plan, processor=processor) as run:
            (answer,) = said(model, processor, fed)
        assert run.report is not None
        image = run.report.images[0]
        drawn = lens.picture(shown, image, plan=plan).resize((SIDE, SIDE))
        drawn.quantize(256).save(FOLDER / f"{name}.png", optimize=True)
        captions[name] = {
            "sample": sample.id, "question": sample.question, "right": sample.answer, "uncompressed": plain,
            "tokens_in": image.tokens_in, "tokens_out": image.tokens_out, "answer": answer,
        }  # fmt: skip
        print(f"{name}: {image.tokens_in} -> {image.tokens_out}, {answer!r}")
    path.write_text(json.dumps(dict(sorted(captions.items())), indent=1) + "\n")


@torch.inference_mode()
def said(model: Any, processor: Any, fed: dict[str, Any]) -> list[str]:
    """Greedy answers."""
    out = model.generate(**fed, max_new_tokens=10, do_sample=False)
    return [s.strip() for s in processor.batch_decode(out[:, fed["input_ids"].shape[1] :], skip_special_tokens=True)]


if __name__ == "__main__":
    main(sys.argv[1:])
