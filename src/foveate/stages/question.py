"""Finding the question in a prompt: the words of the last user turn, without chat template and special tokens.

With a processor nothing is guessed: its chat template says what opens a user turn and what opens an answer. From ids
alone, turns are told apart by the ids that end generation, pictures, and the header that stands before the first picture.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import MethodError
from ..families import Family
from .follow import IGNORED

HEADER = 7  # tokens, at most, that a template writes to open an answer ("\n<|im_start|>assistant\n", " ASSISTANT:")
OPENER = 3  # tokens before the first picture by which a later user turn is known


@dataclass(frozen=True)
class Turns:
    """What a chat template writes around a user's words.

    Attributes:
        tokenizer: turns ids into text.
        user: text that opens a user turn.
        answer: text that opens an answer, the end of the user turn before it included.
    """

    tokenizer: Any
    user: str
    answer: str

    @classmethod
    def of(cls, processor: Any) -> Turns | None:
        """What a processor's or tokenizer's chat template writes; None if it has none, or one that cannot be read."""
        tokenizer = getattr(processor, "tokenizer", processor)
        if not hasattr(processor, "apply_chat_template") or not hasattr(tokenizer, "decode"):
            return None
        said = ("lorem", "ipsum", "dolor")
        for wrap in (lambda text: [{"type": "text", "text": text}], str):
            talk = [
                {"role": role, "content": wrap(text)}
                for role, text in zip(("user", "assistant", "user"), said, strict=True)
            ]
            try:
                text = processor.apply_chat_template(talk, tokenize=False, add_generation_prompt=True)
            except Exception:  # no template, or one that wants contents in another form: templates raise what they like
                continue
            if not isinstance(text, str) or any(text.count(word) != 1 for word in said):
                continue
            before, first, second, after = _between(text, said)
            # Two turns of each kind: what they have in common is the template's, however the prompt began.
            user = _shared(before[::-1], second[::-1])[::-1].strip()
            user = _whole(user, getattr(tokenizer, "all_special_tokens", ()))
            answer = _shared(first, after).strip()
            if user:
                return cls(tokenizer, user, answer)
        return None

    def columns(self, ids: list[int], columns: list[int]) -> list[int] | None:
        """Those of the columns (without pictures) that lie in the last user turn, blank ones at its ends left out.

        None if no user turn is found.
        """

        def text(count: int) -> str:
            some = [ids[i] for i in columns[:count]]
            return self.tokenizer.decode(some, skip_special_tokens=False, clean_up_tokenization_spaces=False)

        whole = text(len(columns))
        start = whole.rfind(self.user)
        if start < 0:
            return None
        start += len(self.user)
        stop = whole.find(self.answer, start) if self.answer else -1
        counts = range(len(columns) + 1)
        first = bisect_left(counts, start, key=lambda count: len(text(count)))
        last = bisect_right(counts, stop if stop >= 0 else len(whole), key=lambda count: len(text(count))) - 1
        inside = columns[first:last]
        blank = [not self.tokenizer.decode([ids[i]]).strip() for i in inside]
        while inside and blank[-1]:
            inside, blank = inside[:-1], blank[:-1]
        return inside[blank.index(False) :] if inside else []


def _shared(one: str, other: str) -> str:
    """The longest text that both begin with."""
    same = 0
    while same < min(len(one), len(other)) and one[same] == other[same]:
        same += 1
    return one[:same]


def _whole(text: str, tokens: Sequence[str]) -> str:
    """A text without the rest of a token that it begins in the middle of."""
    for cut in range(len(text) - 1, 0, -1):
        if any(token.endswith(text[:cut]) and token != text[:cut] for token in tokens):
            return text[cut:].strip()
    return text


def _between(text: str, words: tuple[str, ...]) -> list[str]:
    """The pieces of a text around words that occur once each, in this order."""
    pieces = []
    for word in words:
        piece, text = text.split(word)
        pieces.append(piece)
    return [*pieces, text]


def question_columns(
    ids: list[int], live: list[bool], picture: list[bool], special: set[int], ends: set[int], turns: Turns | None
) -> list[int]:
    """Columns of a prompt that hold the words of its last user turn; all its words if that has none.

    From ids alone the turn is found so:

    1. Ids in ``ends`` cut the prompt into stretches. Where the template ends a user turn with one, the last stretch is
       the header of the answer; where it does not, a user turn. The latter is the case if the last stretch holds a
       picture, is longer than HEADER tokens, comes an even number of stretches after the last picture's, or holds
       what stands before the first picture in its turn (at most OPENER tokens). Otherwise the turn is the stretch before.
    2. In the turn, words after the last picture are the question. If these are no more than a header and more words
       stand before, all words of the turn are. In a turn without pictures, the header is dropped where it is known.

    What this cannot know: template words that are plain text in a turn ("ASSISTANT:" at its end) count as words.

    Args:
        ids: (L,) of the prompt.
        live: (L,) no padding, no answer that is there to be scored.
        picture: (L,) placeholders of images.
        special: ids that are no words.
        ends: ids that end generation.
        turns: of the processor, if there is one.
    """
    live_columns = [i for i, alive in enumerate(live) if alive]
    words = [i for i in live_columns if ids[i] not in special and not picture[i]]
    known = set(words)
    if turns is not None:
        inside = turns.columns(ids, [i for i in live_columns if not picture[i]])
        if inside is not None and (found := [i for i in inside if i in known]):
            return found

    stretches: list[list[int]] = [[]]
    for i in live_columns:
        if ids[i] in ends and not picture[i]:
            stretches.append([])
        else:
            stretches[-1].append(i)
    stretches = [stretch for stretch in stretches if stretch]
    seen = [number for number, stretch in enumerate(stretches) if any(picture[i] for i in stretch)]
    if not seen:
        return words

    turn = len(stretches) - 1
    shown = stretches[seen[0]]
    before = [ids[i] for i in shown[: next(j for j, i in enumerate(shown) if picture[i])] if i in known]
    opener = before[-OPENER:]
    if (
        turn != seen[-1]
        and len(stretches[turn]) <= HEADER
        and (turn - seen[-1]) % 2
        and not _find([ids[i] for i in stretches[turn] if i in known], opener)
    ):
        turn -= 1
    stretch = stretches[turn]
    mine = [i for i in stretch if i in known]
    if turn in seen:
        last = max(i for i in stretch if picture[i])
        after = [i for i in mine if i > last]
        mine = after if len(after) > HEADER or 2 * len(after) >= len(mine) else mine
    elif place := _find([ids[i] for i in mine[: 2 * OPENER]], opener):
        mine = mine[place:]
    return mine or words


def _find(sequence: list[int], part: list[int]) -> int:
    """Where the first occurrence of a part ends; 0 if there is none, or the part is empty."""
    for end in range(len(part), len(sequence) + 1) if part else ():
        if sequence[end - len(part) : end] == part:
            return end
    return 0


Relevance = Callable[[Tensor, Tensor], Tensor]  # features (n, d) before the connector, question ids (q,) -> (n,)


@dataclass(frozen=True)
class Question:
    """What a prompt asks.

    Attributes:
        ids: (q,) of its words.
        embeddings: (q, d) of these.
        relevance: the user's own judge of which tokens fit them, or None.
    """

    ids: Tensor
    embeddings: Tensor
    relevance: Relevance | None = None


def judged_by(question: Question, features: Tensor) -> Tensor:
    """(n,) what the user's function says of these features.

    Raises:
        MethodError: if that is no number for each token.
    """
    assert question.relevance is not None
    found = question.relevance(features, question.ids)
    shape = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
    if shape != (len(features),) or not bool(found.isfinite().all()):
        raise MethodError(
            f"relevance gave {shape}" if shape != (len(features),) else "relevance gave NaN or infinity",
            where=f"relevance= of compress, {len(features)} tokens and {len(question.ids)} words",
            hint=f"a tensor of shape ({len(features)},): a finite number for each token, higher where it fits better",
        )
    return found.float().to(features.device)


def question_ids(family: Family, ids: Tensor, text: Tensor, special: Tensor, turns: Turns | None = None) -> Tensor:
    """(q,) ids of the question: the text of the last user turn, without chat template and special tokens.

    The one rule for every family and method; the last picture may stand in an earlier turn. What opens and closes a user
    turn is read from the processor's chat template where there is one, and otherwise guessed from ids:
    `question_columns` says how, and what that cannot know. A prompt without words gives
    none; one whose last user turn has none gives all its words.

    Args:
        family: of the model.
        ids: (L,) of one prompt, with an image.
        text: (L,) columns that may belong to the question: no padding, no answer.
        special: ids that do not, such as placeholders and what separates turns.
        turns: what the processor's chat template writes around a user's words, if it is known.
    """
    model: Any = family.model
    ends: set[int] = set()
    for source in (getattr(model, "generation_config", None), model.config, model.config.get_text_config()):
        eos = getattr(source, "eos_token_id", None)
        ends |= set(eos) if isinstance(eos, (list, tuple)) else set() if eos is None else {int(eos)}
    picture = (ids == family.image_token_id).tolist()
    columns = question_columns(ids.tolist(), text.tolist(), picture, set(special.tolist()), ends, turns)
    return ids[torch.tensor(columns, dtype=torch.long, device=ids.device)]


def special_ids(model: nn.Module, processor: Any) -> Tensor:
    """Ids that are no words: those of the processor's tokenizer, and those that the model's configuration names."""
    tokenizer = getattr(processor, "tokenizer", processor)
    ids = set(getattr(tokenizer, "all_special_ids", None) or ())
    ids |= {i for i, token in getattr(tokenizer, "added_tokens_decoder", {}).items() if token.special}
    config: Any = model.config
    for source in (getattr(model, "generation_config", None), config, config.get_text_config()):
        for name, value in vars(source).items() if source is not None else ():
            if name.endswith(("_token_id", "_token_ids", "_token_index")):
                ids |= {i for i in (value if isinstance(value, (list, tuple)) else [value]) if isinstance(i, int)}
    return torch.tensor(sorted(ids), dtype=torch.long)


def text_columns(kwargs: dict[str, Any]) -> Tensor:
    """(b, L) columns that may belong to a question: not padding, and not an answer that is there to be scored.

    Labels mark an answer; so does ``logits_to_keep``, which assisted decoding sets to one more than its draft has.
    """
    ids, mask, labels = kwargs["input_ids"], kwargs.get("attention_mask"), kwargs.get("labels")
    text = torch.ones_like(ids, dtype=torch.bool)
    if isinstance(mask, Tensor) and mask.ndim == 2:
        text = mask[:, mask.shape[1] - ids.shape[1] :].bool()
    if isinstance(labels, Tensor):
        text = text & (labels == IGNORED).to(ids.device)
    kept = kwargs.get("logits_to_keep")
    if isinstance(kept, int) and 1 < kept <= ids.shape[1]:
        text = text.clone()
        text[:, ids.shape[1] - kept + 1 :] = False
    return text
