"""The testbed: the generator and the fixed set, the chat format, scoring, and the shipped weights."""

import random
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from foveate import testbed
from foveate.testbed import evaluation, questions, scenes, sequences, text
from foveate.testbed.words import DENSE, DENSE_INDEX, LETTER_ORDINALS, PAGE_WORDS, held_out

HAS_WEIGHTS = (Path(testbed.__file__).parent / "model" / "model.safetensors").exists()


# --------------------------------------------------------------------------------------------------------------- pictures


@pytest.mark.parametrize("kind", scenes.KINDS)
def test_a_scene_is_decided_by_its_seed(kind):
    one, two, other = scenes.draw(7, kind), scenes.draw(7, kind), scenes.draw(8, kind)
    assert one.image.tobytes() == two.image.tobytes() != other.image.tobytes()
    assert one.things == two.things and np.array_equal(one.labels, two.labels)
    assert one.image.size == (192, 192) and one.labels.shape == (576, len(DENSE)) and one.weight.shape == (576,)


def test_every_letter_of_a_page_owns_a_clear_patch():
    scene = scenes.draw(3, "page")
    for thing in scene.things:
        for i, char in enumerate(thing.text):
            words = [f"'{char}", LETTER_ORDINALS[i], questions.NUMBERS[thing.line], questions.COLUMNS[thing.cell]]
            index = [DENSE_INDEX[w] for w in words]
            assert (scene.labels[:, index].all(1) & (scene.weight == 1)).any(), (thing, char)


def test_occlusion_is_labelled_by_what_is_seen():
    scene = next(s for s in (scenes.draw(i, "shapes") for i in range(50)) if any(t.depth for t in s.things))
    front, behind = scene.labels[:, DENSE_INDEX["front"]] == 1, scene.labels[:, DENSE_INDEX["behind"]] == 1
    assert front.any() and behind.any() and not (front & behind).any()


def test_unknown_kinds_and_slices_name_the_valid_ones():
    with pytest.raises(ValueError, match="shapes, labels"):
        scenes.draw(0, "cats")
    with pytest.raises(ValueError, match="attribute, count"):
        testbed.generate_scenes(1, 1, "cats")
    with pytest.raises(ValueError, match="attribute, count"):
        testbed.samples(["cats"])


# -------------------------------------------------------------------------------------------------------------- questions


def test_answers_follow_from_the_scene():
    for seed in range(40):
        scene, rng = scenes.draw(seed, "shapes"), random.Random(seed)
        there = {(t.colour, t.shape) for t in scene.things}
        turn = questions.ask(scene, rng, "existence")
        assert turn.answer == ("yes" if tuple(turn.question.split()[-2:]) in there else "no")
        turn = questions.ask(scene, rng, "attribute")
        if turn is None:  # nothing in this picture can be told apart
            continue
        described = turn.question.split(" is the ")[1].split()
        fits = [t for t in scene.things if all(w in (t.colour, t.shape, t.size, "object") for w in described)]
        assert len(fits) == 1 and turn.answer in (fits[0].colour, fits[0].shape, fits[0].size)


def test_follow_ups_ask_something_new():
    for seed in range(40):
        turns = questions.conversation(scenes.draw(seed, "shapes"), random.Random(seed), 3, it=1.0)
        for turn in turns[1:]:
            if turn.question.endswith(" it"):
                before = turns[turns.index(turn) - 1]
                assert before.about is turn.about and turn.answer not in f"{before.question} {before.answer}"


# ------------------------------------------------------------------------------------------------------------------- text


@pytest.fixture(scope="module")
def processor():
    return text.build_processor()


def test_tokenizer_round_trip(processor):
    tokenizer = processor.tokenizer
    for said in ("tiger", "top left", "4096", "a", "read line five left", "an apple"):
        ids = tokenizer(said, add_special_tokens=False).input_ids
        assert ids == sequences.encode(said)
        assert tokenizer.decode(ids, skip_special_tokens=True) == said
        assert tokenizer.unk_token_id not in ids
    assert (
        tokenizer.decode(tokenizer("ASSISTANT: tiger", add_special_tokens=False).input_ids, skip_special_tokens=True)
        == "tiger"
    )
    assert tokenizer("READ  the Red label").input_ids == tokenizer("read the red label").input_ids


def test_dense_words_are_the_embeddings_of_words_and_characters():
    assert len(set(text.DENSE_IDS)) == len(DENSE)
    assert text.VOCABULARY[text.DENSE_IDS[DENSE_INDEX["red"]]] == "▁red"
    assert text.VOCABULARY[text.DENSE_IDS[DENSE_INDEX["'a"]]] == "a"


@pytest.mark.parametrize("slice", ["attribute", "reading-short", "two-images", "later-turns"])
def test_a_training_branch_is_what_the_chat_template_makes(processor, slice):
    for sample in testbed.samples([slice], limit=4):
        turns = [questions.Turn(q, a, 0) for q, a in [*sample.history, (sample.question, sample.answer)]]
        ids = sequences.trunk(len(sample.images)) + sequences.branch(turns)[0]
        said = [*testbed.messages(sample), {"role": "assistant", "content": [{"type": "text", "text": sample.answer}]}]
        full = processor(images=sample.images, text=processor.apply_chat_template(said), return_tensors="pt")
        assert full["input_ids"][0].tolist() == ids
        asked = testbed.inputs(processor, [sample])["input_ids"][0].tolist()
        assert ids[: len(asked)] == asked and asked[-1] == text.TOKEN_ID[text.ASSISTANT]


def test_a_batch_is_left_padded(processor):
    fed = testbed.inputs(processor, testbed.samples(["attribute", "two-images"], limit=2))
    assert fed["pixel_values"].shape == (6, 3, 192, 192)
    assert fed["attention_mask"][0, 0] == 0 and fed["attention_mask"][:, -1].all()
    assert (fed["input_ids"] == processor.image_token_id).sum(1).tolist() == [576, 576, 1152, 1152]


def test_training_pixels_are_the_processor_s(processor):
    import torch

    from foveate.testbed.training import pixels

    sample = testbed.samples(["count"], limit=1)[0]
    ours = pixels(torch.from_numpy(np.array(sample.images[0]))[None])
    assert torch.allclose(testbed.inputs(processor, [sample])["pixel_values"], ours, atol=1e-5)


def test_branches_see_the_trunk_and_themselves():
    import torch

    from foveate.testbed.model import tree_mask

    seen = tree_mask(torch.tensor([[0, 0, 1, 1, -1]]), 3)[0, 0] == 0
    assert seen[:, :3].all()
    assert seen[:4, 3:].tolist() == [
        [True, False, False, False, False],
        [True, True, False, False, False],
        [False, False, True, False, False],
        [False, False, True, True, False],
    ]


def test_a_tree_gives_the_stock_model_s_logits():
    """The training-time attention over branches agrees with the stock model reading one conversation."""
    import torch
    from transformers import AttentionInterface

    from foveate.testbed.model import build_model, tree_attention, tree_mask

    language = build_model(0).model.language_model.eval()
    prefix, tree = torch.tensor(sequences.trunk(1))[:40], sequences.grow(5, "labels", 60)
    embed = language.get_input_embeddings()
    ids = torch.cat([prefix, torch.tensor(tree.ids)])[None]
    last = torch.tensor(tree.branches) == tree.branches[-1]
    stock = language(
        inputs_embeds=embed(torch.cat([prefix, ids[0, 40:][last]])[None]), use_cache=False
    ).last_hidden_state
    AttentionInterface.register("testbed_tree", tree_attention)
    language.config._attn_implementation = "testbed_tree"
    shift = tree.positions[0] - 40
    positions = torch.cat([torch.arange(40), torch.tensor(tree.positions) - shift])[None]
    mask = tree_mask(torch.tensor([tree.branches]), 40).float()
    ours = language(inputs_embeds=embed(ids), position_ids=positions, use_cache=False, tree=mask).last_hidden_state
    assert torch.allclose(ours[0, 40:][last], stock[0, 40:], atol=1e-4)


# -------------------------------------------------------------------------------------------------------------- fixed set


def test_fixed_set():
    everything = testbed.samples()
    count = Counter(s.slice for s in everything)
    assert list(count) == list(testbed.SLICES) and min(count.values()) >= 150
    assert evaluation.DATA.stat().st_size <= 10_000_000
    assert Counter(s.answer for s in everything if s.slice == "existence") == {"yes": 80, "no": 80}
    assert all(len(s.images) == (2 if s.slice == "two-images" else 1) for s in everything)
    assert all(s.history for s in everything if s.slice == "later-turns")
    assert len({s.id for s in everything}) == len(everything)
    for name in testbed.SLICES:
        assert 0 < testbed.chance_level([s for s in everything if s.slice == name]) <= 0.55


def test_fixed_set_is_what_the_generator_makes():
    fresh = testbed.generate_scenes(0, 4, "chart")
    stored = testbed.samples(["chart"], limit=4)
    assert [(s.question, s.answer) for s in fresh] == [(s.question, s.answer) for s in stored]
    assert np.abs(np.asarray(fresh[0].images[0], int) - np.asarray(stored[0].images[0])).mean() < 4


def test_evaluation_pictures_are_not_training_pictures():
    shown = {t.text for s in range(200) for t in scenes.draw(s, "page").things}
    asked = {s.answer for s in testbed.samples(["reading-dense"])}
    words = {w for w in PAGE_WORDS if held_out(w)}
    assert asked & words and 0.15 < len(words) / len(PAGE_WORDS) < 0.35
    assert len(shown & words) <= 2  # three or four random letters can spell a held-out word


def test_make_writes_the_same_bytes_and_can_be_read(tmp_path):
    one, two = (testbed.make(tmp_path / name, seed=3, n=2) for name in ("a.zip", "b.zip"))
    assert one.read_bytes() == two.read_bytes()
    assert len(testbed.samples(path=one)) == 2 * len(testbed.SLICES)
    assert [s.question for s in testbed.samples(path=one)] != [s.question for s in testbed.samples(limit=2)]


def test_scoring():
    sample = testbed.samples(["reading-short"], limit=1)[0]
    assert testbed.correct(f" {sample.answer.upper()} ", sample) and not testbed.correct(sample.answer + "x", sample)
    low, high = testbed.wilson(90, 100)
    assert (round(low, 3), round(high, 3)) == (0.826, 0.945)
    rows = testbed.summary([(sample, sample.answer)])
    assert [r["slice"] for r in rows] == ["reading-short", "all"] and rows[0]["accuracy"] == 1


# ---------------------------------------------------------------------------------------------------------------- weights


@pytest.mark.skipif(HAS_WEIGHTS, reason="this checkout has weights")
def test_missing_weights_say_how_to_get_them():
    with pytest.raises(FileNotFoundError, match="foveate testbed train"):
        testbed.model_path()


@pytest.mark.skipif(not HAS_WEIGHTS, reason="no weights in this checkout")
def test_shipped_weights():
    model, processor = testbed.load()
    assert (testbed.model_path() / "model.safetensors").stat().st_size <= 24_000_000
    assert sum(p.numel() for p in model.parameters()) <= 11_000_000
    assert model.config.text_config.num_key_value_heads < model.config.text_config.num_attention_heads
    results = list(testbed.answer(model, processor, testbed.samples(limit=8), batch=8))
    right = Counter(s.slice for s, said in results if testbed.correct(said, s))
    assert all(right[name] >= 4 for name in testbed.SLICES), right
    assert right.total() >= 0.85 * len(results)
