"""Where the question stands in a prompt, for the ways in which chat templates mark turns."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from types import SimpleNamespace

import pytest
import torch

from foveate.stages.question import Turns, question_columns, question_ids

PICTURE = "<image>"


@dataclass
class Template:
    """A chat template and a tokenizer of words, in one.

    Attributes:
        user, answer: written before each user turn and each answer; end_user, end_answer: written after them.
        start: written first, once. gap: between a picture and the words after it.
        special: ids that the tokenizer calls special; eos: those that end generation.
        lists: whether contents must be lists of parts.
    """

    start: str
    user: str
    end_user: str
    answer: str
    end_answer: str
    special: tuple[str, ...]
    eos: tuple[str, ...]
    picture: str = PICTURE
    lists: bool = True
    ids: dict[str, int] = field(default_factory=dict)

    @property
    def all_special_tokens(self) -> tuple[str, ...]:
        return self.special

    def encode(self, text: str) -> list[int]:
        parts = re.findall(r"<[^<>]*>|\[/?INST\]|\n+| ?\w+|[^\w]", text)
        assert "".join(parts) == text
        return [self.ids.setdefault(part, len(self.ids)) for part in parts]

    def decode(
        self, ids: list[int], skip_special_tokens: bool = False, clean_up_tokenization_spaces: bool = True
    ) -> str:
        words = {i: word for word, i in self.ids.items()}
        return "".join(words[i] for i in ids if not (skip_special_tokens and words[i] in self.special))

    def apply_chat_template(self, talk: list[dict], tokenize: bool = True, add_generation_prompt: bool = False) -> str:
        text = self.start
        for message in talk:
            if isinstance(message["content"], str) == self.lists:
                raise TypeError("contents in another form")
            parts = [{"type": "text", "text": message["content"]}] if not self.lists else message["content"]
            said = "".join(part["text"] if part["type"] == "text" else self.picture for part in parts)
            mine = message["role"] == "user"
            text += (self.user + said + self.end_user) if mine else (self.answer + said + self.end_answer)
        return text + (self.answer if add_generation_prompt else "")


def templates() -> dict[str, Template]:
    """How the families' templates mark turns; fresh, for their vocabularies grow."""
    im = ("<|im_start|>", "<|im_end|>", PICTURE, "<v>", "</v>")
    llama4 = ("<b>", "<h>", "</h>", "<e>", PICTURE, "<v>", "</v>")
    return {
        "qwen": Template(
            "<|im_start|>system\nYou are helpful.<|im_end|>\n", "<|im_start|>user\n", "<|im_end|>\n",
            "<|im_start|>assistant\n", "<|im_end|>\n", im, ("<|im_end|>",), f"<v>{PICTURE}</v>",
        ),
        "no system": Template(
            "", "<|im_start|>user\n", "<|im_end|>\n", "<|im_start|>assistant\n", "<|im_end|>\n", im, ("<|im_end|>",),
            f"<v>{PICTURE}</v>",
        ),
        "gemma": Template(
            "<b>", "<t>user\n", "</t>\n", "<t>model\n", "</t>\n", ("<b>", "<v>", "</v>", PICTURE), ("</t>",),
            f"\n\n<v>{PICTURE}</v>\n\n",
        ),
        "llama4": Template(
            "<b>", "<h>user</h>\n\n", "<e>", "<h>assistant</h>\n\n", "<e>", llama4, ("<e>",), f"<v>{PICTURE}</v>"
        ),
        "smolvlm": Template(
            "<b>", "User:", "<e>\n", "Assistant:", "<e>\n", ("<b>", "<e>", "<v>", PICTURE), ("<e>",), f"<v>{PICTURE}<v>"
        ),
        "vicuna": Template(
            "<b> A chat between a user and an assistant.", " USER: ", "", " ASSISTANT:", "</s>", ("<b>", "</s>", PICTURE),
            ("</s>",), f"{PICTURE}\n", lists=False,
        ),
        "mistral": Template(
            "<b>", "[INST]", "[/INST]", "", "</s>", ("<b>", "</s>", "[INST]", "[/INST]", PICTURE), ("</s>",)
        ),
    }  # fmt: skip


every = pytest.mark.parametrize("name", templates())
LONG = "And what colour would the small boat behind it be if it were night?"
TALKS = {
    "one turn": ([(f"{PICTURE}What is on the table?", None)], "What is on the table?"),
    "words first": ([(f"Please say what you can see in this.{PICTURE}", None)], "Please say what you can see in this."),
    "two pictures": ([(f"{PICTURE}{PICTURE}Which of the two is older?", None)], "Which of the two is older?"),
    "follow-up": ([(f"{PICTURE}What is it?", "A red ship."), (LONG, None)], LONG),
    "second follow-up": ([(f"{PICTURE}What?", "A ship."), ("Which colour?", "Red."), ("Why so?", None)], "Why so?"),
    "later picture": ([("Good day.", "Good day."), (f"{PICTURE}What is that animal?", None)], "What is that animal?"),
}


def prompt(template: Template, talk: list[tuple[str, str | None]]) -> list[int]:
    messages = []
    for question, answer in talk:
        parts = [
            {"type": "image"} if part == PICTURE else {"type": "text", "text": part}
            for part in re.split(f"({PICTURE})", question)
            if part
        ]
        messages.append({"role": "user", "content": parts})
        if answer is not None:
            messages.append({"role": "assistant", "content": [{"type": "text", "text": answer}]})
    lists, template.lists = template.lists, True
    text = template.apply_chat_template(messages, add_generation_prompt=True)
    template.lists = lists
    return template.encode(text.replace(PICTURE, 3 * PICTURE))


def question(template: Template, ids: list[int], processor: bool) -> str:
    known = template.special if processor else (*template.eos, "<b>", "<v>", PICTURE)  # what a configuration names
    special = {template.ids[word] for word in known if word in template.ids}
    ends = {template.ids[word] for word in template.eos if word in template.ids}
    picture = [i == template.ids[PICTURE] for i in ids]
    turns = Turns.of(template) if processor else None
    assert processor == (turns is not None)
    found = question_columns(ids, [True] * len(ids), picture, special, ends, turns)
    assert found == sorted(set(found))
    return template.decode([ids[i] for i in found])


@every
@pytest.mark.parametrize("talk", TALKS)
def test_exact_with_a_processor(name, talk):
    template = templates()[name]
    said, expected = TALKS[talk]
    assert question(template, prompt(template, said), True).strip() == expected


@every
@pytest.mark.parametrize("talk", TALKS)
def test_from_ids_alone(name, talk):
    """All of the question, nothing of earlier turns; template words that are plain text may stand around it."""
    template = templates()[name]
    said, expected = TALKS[talk]
    found = question(template, prompt(template, said), False)
    assert expected in found
    around = set(re.findall(r"\w+", found.replace(expected, "")))
    allowed = {"user", "User", "USER", "assistant", "ASSISTANT", "im_start", "h", "t", "v", "INST"}
    if (name, talk) == ("vicuna", "words first"):
        allowed |= {"A", "chat", "between", "a", "and", "an"}
    assert around <= allowed


def test_what_ids_alone_cannot_tell():
    """A short follow-up whose template opens and closes turns by plain words is taken for the header of an answer."""
    template = templates()["smolvlm"]
    ids = prompt(template, [(f"{PICTURE}What is it?", "A ship."), ("Why?", None)])
    assert "Why?" in question(template, ids, False)
    template = templates()["mistral"]
    ids = prompt(template, [(f"Look at this: {PICTURE}What is it?", "A ship."), ("Why?", None)])
    assert question(template, ids, False).startswith("What is it?")
    assert question(template, ids, True) == "Why?"


def test_padding_and_answers_are_left_out():
    template = templates()["qwen"]
    ids = prompt(template, TALKS["one turn"][0])
    plain = question(template, ids, True)
    special = {template.ids[word] for word in template.special if word in template.ids}
    live = [False] * 4 + [True] * len(ids)
    padded = [0] * 4 + ids
    picture = [i == template.ids[PICTURE] for i in padded]
    ends = {template.ids["<|im_end|>"]}
    found = question_columns(padded, live, picture, special, ends, Turns.of(template))
    assert template.decode([padded[i] for i in found]) == plain and min(found) >= 4
    answer = template.encode("A book.<|im_end|>")
    live = [True] * len(ids) + [False] * len(answer)
    picture = [i == template.ids[PICTURE] for i in ids + answer]
    for turns in (Turns.of(template), None):
        found = question_columns(ids + answer, live, picture, special, ends, turns)
        assert plain in template.decode([(ids + answer)[i] for i in found])


def test_prompts_without_turns():
    """Ids only, as a test or a base model has them: words after the last picture, or those before, or none."""
    picture = [False, True, True, False, False]
    assert question_columns([1, 9, 9, 5, 6], [True] * 5, picture, {1, 9}, {2}, None) == [3, 4]
    assert question_columns([5, 9, 9, 1, 1], [True] * 5, picture, {1, 9}, {2}, None) == [0]
    assert question_columns([1, 9, 9, 1, 1], [True] * 5, picture, {1, 9}, {2}, None) == []
    assert question_columns([5, 6], [True, True], [False] * 2, {1}, {2}, None) == [0, 1]


def test_templates_that_cannot_be_read():
    assert Turns.of(None) is None
    assert Turns.of(SimpleNamespace(decode=str)) is None
    assert Turns.of(SimpleNamespace(apply_chat_template=lambda *a, **k: "always the same", decode=str)) is None
    silent = SimpleNamespace(
        apply_chat_template=lambda talk, **k: "".join(m["content"][0]["text"] for m in talk), decode=str
    )
    assert Turns.of(silent) is None, "nothing opens a turn"


def test_a_template_that_does_not_fit_the_prompt():
    """Prompts may be written by hand: then it is as if there were no processor."""
    template, other = templates()["mistral"], templates()["qwen"]
    ids = prompt(template, TALKS["one turn"][0])
    turns = Turns(template, *[getattr(Turns.of(other), name) for name in ("user", "answer")])
    picture = [i == template.ids[PICTURE] for i in ids]
    special = {template.ids[word] for word in template.special if word in template.ids}
    found = question_columns(ids, [True] * len(ids), picture, special, {template.ids["<b>"]}, turns)
    assert template.decode([ids[i] for i in found]) == "What is on the table?"


def test_ids():
    """(q,) ids of the question alone, on the prompt's device."""
    config = SimpleNamespace(eos_token_id=2, get_text_config=lambda: SimpleNamespace(eos_token_id=[2, 3]))
    model = SimpleNamespace(config=config, generation_config=None)
    family = SimpleNamespace(model=model, image_token_id=9)
    ids = torch.tensor([1, 7, 9, 9, 5, 6])
    found = question_ids(family, ids, torch.ones(6, dtype=torch.bool), torch.tensor([1, 2, 9]))
    assert found.tolist() == [5, 6] and found.dtype == ids.dtype
    assert question_ids(family, ids, torch.zeros(6, dtype=torch.bool), torch.tensor([1, 2, 9])).shape == (0,)


def test_the_testbed():
    """A real tokenizer and a real chat template: exactly the words that were asked."""
    from foveate.testbed import text

    processor = text.build_processor()
    turns = Turns.of(processor)
    assert turns is not None and (turns.user, turns.answer) == ("USER:", "ASSISTANT:")
    content = [{"type": "image"}, {"type": "text", "text": "what color is the box?"}]
    talk = [
        {"role": "user", "content": content},
        {"role": "assistant", "content": "red"},
        {"role": "user", "content": "how many?"},
    ]
    tokenizer = processor.tokenizer
    for some, asked in ((talk[:1], "what color is the box?"), (talk, "how many?")):
        written = processor.apply_chat_template(some, add_generation_prompt=True, tokenize=False)
        ids = tokenizer(written, add_special_tokens=False)["input_ids"]
        picture = [i == tokenizer.convert_tokens_to_ids(text.IMAGE) for i in ids]
        special, ends = set(tokenizer.all_special_ids), {tokenizer.eos_token_id}
        found = question_columns(ids, [True] * len(ids), picture, special, ends, turns)
        assert tokenizer.decode([ids[i] for i in found]).strip() == asked
        found = question_columns(ids, [True] * len(ids), picture, special, ends, None)
        assert asked in tokenizer.decode([ids[i] for i in found])
