"""The testbed's architecture, the initialisation that makes it learnable, and the attention used while training it.

The model is stock transformers: nothing here is needed to load or run it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import scenes
from .text import BOS, DENSE_IDS, EOS, IMAGE, KNOWN, PAD, TOKEN_ID, VOCABULARY
from .words import COLOURS, COLUMNS, KINDS, LETTER_ORDINALS, NUMBERS, ROWS, SHAPES, SIZES

MATCHED = (
    *COLOURS,
    *KINDS,
    *SHAPES,
    *NUMBERS,
    *COLUMNS,
    *ROWS,
    *SIZES,
    *LETTER_ORDINALS,
)  # in questions and on patches


def build_model(seed: int = 0) -> Any:
    """A stock `LlavaForConditionalGeneration` (5.9 M parameters) whose first decoder layers start by matching meanings."""
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

    torch.manual_seed(seed)
    vision = CLIPVisionConfig(
        hidden_size=192, intermediate_size=768, num_hidden_layers=6, num_attention_heads=3, image_size=scenes.SIZE,
        patch_size=scenes.PATCH, projection_dim=192, hidden_act="gelu_pytorch_tanh",
    )  # fmt: skip
    text = LlamaConfig(
        hidden_size=256, intermediate_size=512, num_hidden_layers=5, num_attention_heads=4, num_key_value_heads=2, head_dim=64,
        vocab_size=len(VOCABULARY), max_position_embeddings=2048, tie_word_embeddings=True, rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": 1e8},
        pad_token_id=TOKEN_ID[PAD], bos_token_id=TOKEN_ID[BOS], eos_token_id=TOKEN_ID[EOS],
    )  # fmt: skip
    config = LlavaConfig(
        vision_config=vision, text_config=text, image_token_index=TOKEN_ID[IMAGE], vision_feature_layer=-2,
        vision_feature_select_strategy="default", image_seq_length=scenes.GRID**2, projector_hidden_act="gelu",
        tie_word_embeddings=True,
    )  # fmt: skip
    model = LlavaForConditionalGeneration(config)
    _look_around(model)
    return model


@torch.no_grad()
def mark_text(model: Any, images: Tensor) -> None:
    """Between the stages: bring word embeddings to length 1 and visual tokens to an average length of 2, and let the
    last channel tell them apart (words +0.5, visual tokens -1).

    The tower stage compares directions only, so lengths are free until here. images (b, 3, 192, 192): any training
    pictures.
    """
    embed, connector = model.get_input_embeddings().weight, model.model.multi_modal_projector
    embed[:, -1] = 0
    embed.copy_(F.normalize(embed, dim=-1) * 0.75**0.5)
    embed[:, -1] = 0.5
    connector.linear_2.weight[-1] = 0
    connector.linear_2.bias[-1] = 0
    seen = model.model.vision_tower(images, output_hidden_states=True).hidden_states[-2][:, 1:]
    factor = 3**0.5 / connector(seen).norm(dim=-1).mean()
    connector.linear_2.weight.mul_(factor)
    connector.linear_2.bias.mul_(factor)
    connector.linear_2.bias[-1] = -1


@torch.no_grad()
def start_decoder(model: Any) -> None:
    """Start the decoder so that a question finds the patches it is about from the first step (after `mark_text`).

    Layer 0 gathers: every text token takes over the words just before it, so that the token that must answer holds
    the words of the question. In layers 1 to 3 the first group of heads matches: keys equal queries on the span of the
    words that questions and patches share, so that a token attends to the patches that mean most of its words and takes
    over what else they mean. Without the second the model only learns which colours are present, not whose they are;
    without the first the same happens, because the answer starts one token after the words asked about.

    Sharp matching averages over what it finds, so it cannot count, and an answer can compare two things only if it hears
    what earlier tokens found. The second group does this. In layer 1 it matches at two strengths, with the first token as
    the rest of the softmax: a share then means a number, however many patches show nothing. In layers 2 and 3 it gathers
    again, into channels of its own.

    Gathering reads the channel that marks text, turned at frequencies that fade over some tokens. Matching lies in the
    slow half of every head, because RoPE turns the fast half too quickly to compare across 576 tokens.
    """
    config, embed = model.config.text_config, model.get_input_embeddings().weight
    size, kv, width = config.head_dim, config.num_key_value_heads, config.hidden_size
    groups, half = config.num_attention_heads // kv, config.head_dim // 2
    embed[TOKEN_ID["▁objects"]] = embed[TOKEN_ID["▁object"]]
    first = _unlike(embed[[*(TOKEN_ID[f"▁{w}"] for w in KNOWN), *DENSE_IDS]])
    embed[TOKEN_ID[BOS]] = 0.75**0.5 * first
    embed[TOKEN_ID[BOS], -1] = 0.5

    def span(tokens: Sequence[int], rows: int) -> Tensor:
        """(rows, width) orthonormal, the first of them spanning these words, without the marking channel."""
        vectors = torch.cat([embed[list(tokens)], torch.randn(rows, width)])[:rows].T.clone()
        vectors[-1] = 0
        return torch.linalg.qr(vectors).Q.T

    def grouped(weight: Tensor) -> Tensor:
        """(kv, size, width) -> one block per query head."""
        return weight[:, None].expand(-1, groups, -1, -1).reshape(-1, width)

    shared = span([TOKEN_ID[f"▁{w}"] for w in MATCHED], len(MATCHED))
    slow = [row for i in range(half - 1, 0, -1) for row in (i, i + half)][: len(MATCHED) + 1]
    still = half - 4  # a row that hardly turns
    for number, layer in enumerate(model.model.language_model.layers[:4]):
        attention = layer.self_attn
        key, query = torch.zeros(kv, size, width), torch.zeros(kv, size, width)
        if number == 0:
            value = 0.6 * span([TOKEN_ID[f"▁{w}"] for w in KNOWN], kv * size).view(kv, size, width)
            out = value.clone()
            key[:, [2, 3, 4, 5], -1] = (1.5 / 8) ** 0.5
            key[:, still, -1] = (5 / 8) ** 0.5  # words to words, away from the picture
            query.copy_(key)
        else:
            words = DENSE_IDS if number == 1 else DENSE_IDS[::-1]  # 79 words on 64 channels: first these, then those
            value = 0.5 * torch.stack([span(words, size), span(DENSE_IDS[: len(MATCHED)], size)])
            out = torch.stack([value[0], 0.5 * span([], size)])
            key[0, slow[1:]] = shared
            key[0, slow[0], -1], query[0, slow[0], -1] = -1.5 - number, 1.5 + number  # words to the picture
            query[0, slow[1:]] = shared
            if number == 1:
                key[1], query[1] = key[0], query[0]
                # Words are 30 below the picture here; the first token is lifted to 13 above patches that match nothing,
                # which is where two matching words lie for the first strength, and one for the second.
                key[1, slow[0]] += 2.87 * first
            else:
                key[1, [4, 5, 6], -1] = 2.0
                key[1, still, -1] = 6.0
                query[1] = key[1]
        spread, back = grouped(query), grouped(out)
        if number == 1:
            heads, rows = spread.view(kv, groups, size, width), back.view(kv, groups, size, width)
            for head, strength in enumerate((1.3, 2.6)):
                heads[1, head, slow[1:]] *= strength
            rows[1, 1] = 0.5 * span([], size)  # what the second finds stays apart
        attention.k_proj.weight.copy_(key.flatten(0, 1) + 0.01 * torch.randn(kv * size, width))
        attention.q_proj.weight.copy_(spread + 0.01 * torch.randn_like(spread))
        attention.v_proj.weight.copy_(value.flatten(0, 1))
        attention.o_proj.weight.copy_(back.T / groups)


def _unlike(words: Tensor) -> Tensor:
    """(width,) a direction of length 1 with nothing of these rows (n, width), nor of the channel that marks text, in it."""
    words = words.clone()
    words[:, -1] = 0
    _, strength, basis = torch.linalg.svd(words, full_matrices=False)
    basis = basis[strength > 1e-3 * strength[0]]
    free = torch.randn(words.shape[1])
    free[-1] = 0
    free = free - basis.T @ (basis @ free)
    free[-1] = 0
    return F.normalize(free, dim=0)


_OFFSETS = (
    ((0, -1), (0, 1), (1, 0)),
    ((-1, 0), (0, -1), (0, 1)),
    ((0, -2), (0, 2), (0, 0)),
)  # per tower layer and head: y, x


@torch.no_grad()
def _look_around(model: Any) -> None:
    """Start the tower with waves as position embeddings, and let the heads of its first layers look at fixed
    neighbours.

    Positions are 16 frequencies per axis as sine and cosine in the first 64 channels. A query that holds these waves
    turned by an offset then matches the key at that offset: a convolution to start from. Without it neighbours have
    to be found among 576 unrelated vectors first, and letters, which lie across patches, were at 0.15 after 10,000
    pictures.
    """
    vision = model.model.vision_tower
    config, side = vision.config, scenes.GRID
    frequency = torch.linspace(0.13, 2.1, 16)
    angle = torch.arange(side)[:, None] * frequency
    wave = torch.stack([angle.sin(), angle.cos()], -1).flatten(1)  # (24, 32): sine and cosine alternate
    table = torch.cat([wave[:, None].expand(-1, side, -1), wave[None].expand(side, -1, -1)], -1).flatten(
        0, 1
    )  # (576, 64)
    position = vision.embeddings.position_embedding.weight
    position.zero_()
    position[1:, :64] = 0.4 * table
    for layer, offsets in zip(vision.encoder.layers, _OFFSETS, strict=False):
        attention = layer.self_attn
        for head, offset in enumerate(offsets):
            rows = slice(64 * head, 64 * head + 64)
            turn = torch.zeros(64, 64)
            for axis in (0, 1):
                for i, w in enumerate(frequency * offset[axis]):
                    at, c, s = 32 * axis + 2 * i, w.cos(), w.sin()
                    turn[at : at + 2, at : at + 2] = torch.tensor([[c, s], [-s, c]])
            attention.q_proj.weight[rows].mul_(0.3)
            attention.k_proj.weight[rows].mul_(0.3)
            attention.q_proj.weight[rows, :64] += 0.9 * turn
            attention.k_proj.weight[rows, :64] += 0.9 * torch.eye(64)
    assert config.hidden_size // config.num_attention_heads == 64


def tree_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: None, scaling: float = 1.0,
    tree: Tensor | None = None, **unused: Any,
) -> tuple[Tensor, None]:  # fmt: skip
    """Attention over a trunk and its branches (see `sequences.py`), for `AttentionInterface`.

    query (b, h, n, d), key and value (b, kv, n, d), tree (b, 1, t, n) additive mask of the t text tokens after the
    trunk. The trunk is plain causal attention; two calls cost about half of one call with a full mask.
    """
    assert tree is not None
    groups, start = query.shape[1] // key.shape[1], query.shape[2] - tree.shape[2]
    key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    trunk = F.scaled_dot_product_attention(
        query[:, :, :start], key[:, :, :start], value[:, :, :start], is_causal=True, scale=scaling
    )
    text = F.scaled_dot_product_attention(
        query[:, :, start:], key, value, attn_mask=tree.to(query.dtype), scale=scaling
    )
    return torch.cat([trunk, text], 2).transpose(1, 2).contiguous(), None


def tree_mask(branch: Tensor, start: int) -> Tensor:
    """branch (b, t) numbers, -1 for padding -> additive mask (b, 1, t, start + t): the trunk, and one's own branch so far."""
    text = branch.shape[1]
    own = (branch[:, :, None] == branch[:, None]) & torch.ones(text, text, dtype=torch.bool).tril()
    allowed = torch.cat([torch.ones(*branch.shape, start, dtype=torch.bool), own], -1)
    return torch.zeros(allowed.shape, dtype=torch.bfloat16).masked_fill(~allowed, float("-inf"))[:, None]
