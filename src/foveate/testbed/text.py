"""The testbed's tokenizer, chat format and processor.

Known words are one token each, with the space before them inside the token ("▁red"). Anything else is spelled: a "▁"
and then one token per character, the same token wherever in the word the character stands, so that a letter seen in
a picture and a letter written in an answer share one embedding. A regular expression that lists the known words does
the splitting.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .words import DENSE, DIGITS, LETTERS, QUESTION_WORDS

if TYPE_CHECKING:
    from transformers import LlavaProcessor, PreTrainedTokenizerFast

PAD, IMAGE, BOS, EOS, UNK, USER, ASSISTANT = SPECIAL = (
    "<pad>",
    "<image>",
    "<s>",
    "</s>",
    "<unk>",
    "USER:",
    "ASSISTANT:",
)
KNOWN = tuple(dict.fromkeys([w for w in DENSE if not w.startswith("'")] + list(QUESTION_WORDS)))
VOCABULARY = (*SPECIAL, "▁", *LETTERS, *DIGITS, *".,?!-'", *(f"▁{w}" for w in KNOWN))
TOKEN_ID = {token: i for i, token in enumerate(VOCABULARY)}
DENSE_IDS = tuple(
    TOKEN_ID[w[1:] if w.startswith("'") else f"▁{w}"] for w in DENSE
)  # the embedding that means each dense word

CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ 'USER:' if message['role'] == 'user' else 'ASSISTANT:' }}"
    "{% if message['content'] is string %}{{ ' ' + message['content'] }}{% else %}"
    "{% for item in message['content'] %}"
    "{% if item['type'] == 'image' %}{{ '<image>' }}{% else %}{{ ' ' + item['text'] }}{% endif %}"
    "{% endfor %}{% endif %}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)


def build_tokenizer() -> PreTrainedTokenizerFast:
    """The tokenizer, made from the word lists alone (no training)."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.WordLevel(TOKEN_ID, unk_token=UNK))
    core.normalizer = normalizers.Sequence(
        [
            normalizers.Lowercase(),
            normalizers.Replace(Regex(r"\s+"), " "),
            normalizers.Strip(),
            normalizers.Prepend(" "),
            normalizers.Replace(" ", "▁"),
        ]
    )
    known = "|".join(sorted(KNOWN, key=len, reverse=True))
    core.pre_tokenizer = pre_tokenizers.Split(Regex(f"▁(?:{known})(?![a-z0-9])|."), behavior="isolated")
    core.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    core.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    return PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token=PAD, bos_token=BOS, eos_token=EOS, unk_token=UNK, padding_side="left",
        additional_special_tokens=[IMAGE, USER, ASSISTANT], extra_special_tokens={"image_token": IMAGE},
        model_max_length=2048, clean_up_tokenization_spaces=False,
    )  # fmt: skip


def build_processor() -> LlavaProcessor:
    """Processor with a Pillow image processor: 192 x 192 px, pixels to [-1, 1], 576 placeholders per image."""
    from transformers import LlavaProcessor
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    from .scenes import PATCH, SIZE

    pictures = CLIPImageProcessorPil(
        size={"height": SIZE, "width": SIZE}, crop_size={"height": SIZE, "width": SIZE}, do_center_crop=False,
        image_mean=[0.5] * 3, image_std=[0.5] * 3,
    )  # fmt: skip
    return LlavaProcessor(
        image_processor=pictures, tokenizer=build_tokenizer(), patch_size=PATCH, vision_feature_select_strategy="default",
        num_additional_image_tokens=1, chat_template=CHAT_TEMPLATE, image_token=IMAGE,
    )  # fmt: skip
