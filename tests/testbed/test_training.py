"""Training: what the decoder reads, and that both stages run, stop and go on where they stopped."""

import json

import pytest
import torch

from foveate.testbed import scenes, sequences, training
from foveate.testbed.text import IMAGE, TOKEN_ID
from foveate.testbed.training import Phase, choose_visible, place_visible

PIECES = scenes.GRID**2


def test_the_decoder_reads_what_shows_something_first():
    weight = torch.full((2, PIECES), scenes.BACKGROUND)
    weight[0, [5, 300]] = 1.0
    weight[1, 17] = 0.0  # shared by two things: it shows something, too
    chosen = choose_visible(weight, 40, torch.Generator().manual_seed(0))
    assert chosen.shape == (2, 40) and (chosen.diff() > 0).all()
    assert {5, 300} <= set(chosen[0].tolist()) and 17 in chosen[1].tolist()
    assert set(chosen[0].tolist()) != set(chosen[1].tolist())


@pytest.mark.parametrize("pictures", [1, 2])
def test_chosen_patches_keep_their_places(pictures):
    trunk = torch.tensor(sequences.trunk(pictures))
    image = TOKEN_ID[IMAGE]
    words = torch.arange(len(trunk)).float()[:, None]
    visual = -torch.arange(pictures * PIECES).float()[None, :, None]
    full, where = place_visible(words, visual, None, trunk, image)
    assert full.shape == (1, len(trunk), 1) and where.tolist() == [list(range(len(trunk)))]
    chosen = torch.tensor([[[0, 7, 575]] * pictures])
    few, position = place_visible(words, visual, chosen, trunk, image)
    assert few.shape[1] == len(trunk) - pictures * (PIECES - 3) and (position.diff() > 0).all()
    assert torch.equal(few[0], full[0][position[0]])


TOWER = (Phase(steps=2, batch=2, lr=1e-3, horizon=2),)
JOINT = (
    Phase(steps=1, batch=2, lr=1e-3, horizon=1, seeing=0, visible=(200,), budget=60),
    Phase(steps=1, batch=2, lr=1e-3, horizon=1, seeing=0.5, budget=60),
)


def test_both_stages_stop_and_go_on(tmp_path, monkeypatch):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    monkeypatch.setattr(training, "TOWER", TOWER)
    monkeypatch.setattr(training, "JOINT", JOINT)
    seen = []
    folder = training.train(whole, tick=lambda *now: seen.append(now))
    assert folder and (folder / "model.safetensors").exists()
    assert seen == [("tower", 1, 2), ("tower", 2, 2), ("joint", 1, 2), ("joint", 2, 2)]
    for _ in range(9):
        if training.train(parts, hours=1e-9):  # one step each time, then stopped
            break
    one, other = (torch.load(path / "joint.pt", weights_only=True)["model"] for path in (whole, parts))
    assert all(torch.allclose(one[name].float(), other[name].float(), atol=1e-4) for name in one)
    log = [json.loads(line) for line in (whole / "log.jsonl").read_text().splitlines()]
    assert [(line["stage"], line["step"]) for line in log] == [("tower", 2), ("joint", 2)]


def test_the_tower_stays_as_it_is_while_only_the_decoder_learns(tmp_path):
    assert training.tower_stage(tmp_path, TOWER)
    assert training.joint_stage(tmp_path, JOINT[:1])
    before = torch.load(tmp_path / "tower.pt", weights_only=True)["model"]
    after = torch.load(tmp_path / "joint.pt", weights_only=True)["model"]
    tower = [name for name in before if "vision_tower" in name]
    assert tower and all(torch.equal(before[name], after[name]) for name in tower)
    layers = [name for name in before if "language_model.layers" in name]
    assert any(not torch.equal(before[name], after[name]) for name in layers)


def test_the_joint_stage_asks_for_the_tower_first(tmp_path):
    with pytest.raises(FileNotFoundError, match="tower stage first"):
        training.joint_stage(tmp_path, JOINT)
