import contextlib
import inspect
import math
import re
import sys
import typing
import warnings
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from helpers import ROUNDING
from transformers import GPTNeoXConfig
from transformers.models.bloom.modeling_bloom import build_alibi_tensor
from transformers.models.gpt_neox.modeling_gpt_neox import GPTNeoXRotaryEmbedding, apply_rotary_pos_emb

from pe_core import ENCODINGS, LabForCausalLM, encodings, recipes
from pe_core.errors import ConfigError
from pe_core.schema import Shape

H, K = 4, 16


def build(name, heads=H, head_dim=K, seq_len=64, **options):
    return encodings.build(name, options, Shape(heads * head_dim, heads, head_dim, 2, seq_len))


def randn(*shape, seed=0, dtype=torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


# --- discovery -------------------------------------------------------------------------------------------------------


def test_an_encoding_is_named_by_its_file():
    files = {path.stem for path in Path(encodings.__file__).parent.glob("*.py")} - {"__init__", "base"}
    assert set(ENCODINGS) == files >= {"none", "learned", "rope", "alibi"}
    assert len(ENCODINGS) == len(files)
    assert all(Path(inspect.getfile(cls)).stem == name for name, cls in ENCODINGS.items())


@pytest.mark.parametrize("ask", [encodings.options, encodings.label, lambda name, values: build(name, **values)])
def test_an_unknown_name_lists_the_known_ones_and_the_nearest(ask):
    with pytest.raises(ConfigError) as error:
        ask("ropee", {})
    message = str(error.value)
    assert "'ropee'" in message
    assert "did you mean 'rope'?" in message
    assert all(name in message for name in ENCODINGS)
    assert "\n" not in message


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A second folder of encodings."""
    monkeypatch.setattr(encodings, "__path__", [*encodings.__path__, str(tmp_path)])
    yield tmp_path
    for name in [path.stem for path in tmp_path.glob("*.py")]:
        sys.modules.pop(f"{encodings.__name__}.{name}", None)
        vars(encodings).pop(name, None)


MADE_UP = '''
import torch
from pydantic import Field
from torch import nn

from pe_core.schema import Strict
from pe_core.encodings.base import Encoding


class MadeUp(Encoding):
    """All hooks at once; queries and keys grow; the last layer has no encoding."""

    class Options(Strict):
        strength: float = Field(0.5, gt=0)

    family, title, shift_invariant = "hybrid", "Made up", False

    def __init__(self, shape, options):
        super().__init__(shape, options)
        self.strength = nn.Parameter(torch.empty(1))
        self.plain = [Encoding(shape, None)]

    def for_layer(self, layer):
        return self if layer < self.shape.layers - 1 else self.plain[0]

    def embed(self, x, positions):
        return x + torch.sin(positions[..., None].float())

    def transform_qk(self, q, k, positions, x):
        own = torch.cos(positions[:, None, :, None] * x[:, None, :, :2])
        return tuple(torch.cat((y, own.expand(-1, y.shape[1], -1, -1).type_as(y)), -1) for y in (q, k))

    def bias(self, q, k, query, key, token_state):
        distance = query[:, None, :, None] - key[:, None, None, :]
        return -self.strength * torch.log1p(distance.abs()) * q.mean(-1, keepdim=True)

    def init_parameter(self, name, parameter, generator):
        parameter.fill_({"strength": self.options.strength}[name])
'''


def test_one_new_file_is_a_whole_encoding(folder, tiny, ids, tmp_path_factory):
    assert "made_up" not in ENCODINGS
    (folder / "made_up.py").write_text(MADE_UP)
    assert "made_up" in ENCODINGS
    assert encodings.label("made_up", {"strength": 2}) == "Made up, strength 2"
    with pytest.raises(ConfigError, match=r"^encoding 'made_up': strength=-1: .*greater than 0$"):
        encodings.options("made_up", {"strength": -1})

    model = tiny("made_up", {"strength": 2.0})
    assert LabForCausalLM(model.config).initialise(3).encoding.strength.item() == 2
    calls, hook = [], model.encoding.bias
    model.encoding.bias = lambda *a: calls.append(a) or hook(*a)
    expected = model(ids).logits
    assert len(calls) == 1  # `for_layer`: one of the two layers
    assert (expected - tiny("none")(ids).logits).abs().max() > 0.1
    torch.testing.assert_close(tiny("made_up", {"strength": 2.0}, "eager")(ids).logits, expected, atol=1e-5, rtol=1e-5)

    first = model(ids[:, :5])
    rest = model(ids[:, 5:], past_key_values=first.past_key_values).logits
    torch.testing.assert_close(torch.cat((first.logits, rest), 1), expected, atol=1e-5, rtol=1e-5)
    saved = tmp_path_factory.mktemp("saved")
    model.save_pretrained(saved)
    assert torch.equal(LabForCausalLM.from_pretrained(saved)(ids).logits, expected)


def test_the_readmes_example_is_a_whole_encoding(folder, tiny, ids):
    """Copied and pasted, it is all that the tests of every encoding ask for."""
    readme = (Path(__file__).parents[2] / "README.md").read_text()
    section = readme.split("## Add an encoding\n")[1].split("\n## ")[0]
    (example,) = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    (name,) = re.findall(r"`(\w+)\.py`", section)
    (folder / f"{name}.py").write_text(example)
    model = tiny(name, {"strength": 2.0})
    assert (model(ids).logits - tiny(name)(ids).logits).abs().max() > 0.01, "the option does something"
    for check in (test_says_what_it_is, test_refuses_what_it_does_not_know):
        check(name)
    for check in (test_logits_and_gradients, test_encodes_something, test_stretched_positions_are_seen):
        check(name, tiny, ids)
    for dtype in (torch.float32, torch.bfloat16):
        test_hooks_keep_shapes_and_dtypes(name, dtype)
    for attention in ("sdpa", "eager"):
        test_is_causal_to_the_bit(name, tiny, ids, attention, 6)
        test_shift_invariance_is_as_claimed(name, tiny, ids, attention)
        test_bf16_stays_close(name, tiny, attention)


ZEROS = """
import torch
from pe_core.encodings.base import Encoding


class Zeros(Encoding):
    def transform_qk(self, q, k, positions, x):
        return tuple(torch.nn.functional.pad(y, (0, 5)) for y in (q, k))
"""


def test_appended_dimensions_leave_the_scale_alone(folder, tiny, ids):
    (folder / "zeros.py").write_text(ZEROS)
    torch.testing.assert_close(tiny("zeros")(ids).logits, tiny("none")(ids).logits, atol=1e-5, rtol=1e-5)


ONE = "from pe_core.encodings.base import Encoding\nclass A(Encoding): pass\n"


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("", 0),
        ("from pe_core.encodings.base import Encoding\nfrom pe_core.encodings.rope import RoPE", 0),
        (ONE, 1),
        ("from pe_core.encodings.rope import RoPE\nclass Hybrid(RoPE): pass", 1),
        (ONE + "class B(A): pass", 2),
    ],
)
def test_a_file_defines_one_encoding(folder, text, found):
    (folder / "written.py").write_text(text)
    if found == 1:
        assert ENCODINGS["written"].__module__ == "pe_core.encodings.written"
    else:
        with pytest.raises(ConfigError, match=rf"^encodings/written\.py defines {found} subclasses .* one$"):
            ENCODINGS["written"]
    assert "rope" in ENCODINGS  # its neighbours do not suffer


# --- every encoding --------------------------------------------------------------------------------------------------


def test_says_what_it_is(encoding):
    cls = ENCODINGS[encoding]
    assert {"family", "title", "paper", "year"} <= vars(cls).keys()
    assert cls.family
    assert cls.title
    assert re.search(r"\d{4}\.\d{4,5}|doi|https?:", cls.paper)
    assert 2014 < cls.year < 2100
    assert cls.paper in cls.__doc__
    assert str(cls.year) in cls.__doc__
    assert all(name in cls.__doc__ for name in cls.Options.model_fields)  # every setting is explained


def test_labels_are_short_and_distinct():
    labels = [encodings.label(name, {}) for name in ENCODINGS]
    assert len(set(labels)) == len(labels)
    assert all(0 < len(label) <= 28 and "\n" not in label for label in labels)


def test_a_label_tells_every_option_apart(encoding):
    """Whatever the encoding's file says: models that share a label cannot stand in one table."""
    plain = encodings.label(encoding, {})
    for option, about in ENCODINGS[encoding].Options.model_fields.items():
        words = [word for kind in typing.get_args(about.annotation) for word in (kind, *typing.get_args(kind))]
        labels = []
        for value in (*words, 0, 2, 3, 8, 16, 64, 0.25, 0.5, 1.0, 12_000.0, True, False):
            with contextlib.suppress(ConfigError):
                chosen = encodings.options(encoding, {option: value})
                if getattr(chosen, option) != about.default:
                    labels.append(encodings.label(encoding, {option: value}))
        assert plain not in labels, option
        assert labels or encoding == "mix", f"no value tried for {option}"


def test_refuses_what_it_does_not_know(encoding):
    with pytest.raises(ConfigError, match=f"^encoding '{encoding}': unknown setting 'no_such'.*$"):
        encodings.options(encoding, {"no_such": 1})
    for field in ENCODINGS[encoding].Options.model_fields:
        with pytest.raises(ConfigError, match=f"^encoding '{encoding}': {field}=.*: .+$"):
            encodings.options(encoding, {field: object()})


def test_the_table_has_a_row_for_every_encoding():
    table = recipes.encodings_frame().set_index("name")
    assert sorted(table.index) == list(ENCODINGS)
    assert table.label.is_unique
    assert table.loc["none", ["parameters", "explicit_scores", "extrapolates"]].tolist() == [0, False, True]
    # nano has 4 layers, 4 heads of 32, hidden 128: a slope a head; a table of 128 × 128; a gate of 128 + 1 a head and layer.
    assert table.parameters[["alibi_learned", "learned", "fox"]].tolist() == [4, 128 * 128, 4 * 4 * 129]
    assert recipes.encodings_frame("micro", 64).set_index("name").parameters["learned"] == 64 * 256
    with pytest.raises(ConfigError, match=r"^unknown preset 'nan'; did you mean 'nano'\? \(known: micro, "):
        recipes.encodings_frame("nan")
    assert table.explicit_scores[["path", "stick_breaking", "fox", "rope"]].tolist() == [True, True, False, False]
    unstated = [name for name, value in table.extrapolates.items() if value is None]
    assert unstated == [name for name, family in table.family.items() if family == "hybrid"]  # it depends on the members


def test_a_class_need_not_state_everything(folder):
    """And the table shows a dash for what it leaves out."""
    from pe_core.report import tables

    (folder / "written.py").write_text(ONE)
    assert recipes.encodings_frame().set_index("name").extrapolates["written"] is None
    shown = tables.encodings(recipes.encodings_frame()).to_html()
    assert shown.count("<tr>") == len(ENCODINGS) + 1
    assert "–" in shown


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_hooks_keep_shapes_and_dtypes(encoding, dtype):
    B, T, S = 2, 5, 9
    hooks = build(encoding)
    key = torch.arange(S).expand(B, S)
    query, x = key[:, -T:], randn(B, T, H * K, dtype=dtype)
    q, k = randn(2, B, H, T, K, dtype=dtype)
    assert hooks.embed(x.float(), query).shape == x.shape
    q2, k2 = hooks.transform_qk(q, k, query, x)
    assert q2.dtype == k2.dtype == dtype
    assert q2.shape == k2.shape
    assert q2.shape[:3] == (B, H, T)
    assert q2.shape[3] >= K
    bias = hooks.bias(q2, torch.cat((k2[:, :, : S - T], k2), 2), query, key, hooks.token_state(randn(B, S, H * K), key))
    assert bias is None or torch.broadcast_shapes(bias.shape, (B, H, T, S)) == (B, H, T, S)


def test_logits_and_gradients(encoding, tiny, ids):
    model = tiny(encoding)
    logits = model(ids).logits
    assert logits.shape == (3, 12, 97)
    assert logits.dtype == torch.float32
    losses = model.losses(ids[:, :-1], ids[:, 1:])
    losses.mean().backward()
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:  # drawn once, and no part of training
            continue
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.any(), name


def test_encodes_something(encoding, tiny, ids):
    if ENCODINGS[encoding].family != "none":
        assert (tiny(encoding)(ids).logits - tiny("none")(ids).logits).abs().max() > 0.01


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("t", [1, 6, 11])
def test_is_causal_to_the_bit(encoding, tiny, ids, attention, t):
    model = tiny(encoding, attention=attention)
    changed = ids.clone()
    changed[:, t] = (ids[:, t] + 1) % 97
    before, after = model(ids).logits, model(changed).logits
    assert torch.equal(before[:, :t], after[:, :t])
    assert (before[:, t:] - after[:, t:]).abs().amax((0, 2)).min() > 1e-3  # everything later does change


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_shift_invariance_is_as_claimed(encoding, tiny, ids, attention):
    model = tiny(encoding, attention=attention)
    positions = torch.arange(12)[None]
    moved = (model(ids, position_ids=positions + 37).logits - model(ids).logits).abs().max()
    if ENCODINGS[encoding].shift_invariant:
        assert moved < 1e-4
    else:
        assert moved > 0.01


def test_stretched_positions_are_seen(encoding, tiny, ids):
    """The counterpart of shift invariance: position_ids do reach the encoding, where it reads them."""
    model = tiny(encoding)
    stretched = model(ids, position_ids=3 * torch.arange(12)[None]).logits
    if ENCODINGS[encoding].reads_positions:
        assert (stretched - model(ids).logits).abs().max() > 0.01
    else:
        assert torch.equal(stretched, model(ids).logits)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_bf16_stays_close(encoding, tiny, attention):
    """At positions beyond 256 too, where bf16 no longer holds every whole number."""
    ids = torch.randint(97, (2, 320), generator=torch.Generator().manual_seed(2))
    model = tiny(encoding, attention=attention, max_position_embeddings=320)
    exact = model(ids).logits
    with torch.autocast("cpu", torch.bfloat16):
        mixed = model(ids).logits
    assert mixed.dtype == torch.bfloat16
    assert (mixed - exact).std() < ROUNDING.get(encoding, 0.05) * exact.std()
    assert (model.to(torch.bfloat16)(ids).logits - exact).std() < ROUNDING.get(encoding, 0.05) * exact.std()


@pytest.mark.parametrize("T", [17, 64])
def test_beyond_the_training_length(encoding, tiny, T):
    model = tiny(encoding, max_position_embeddings=16)
    ids = torch.randint(97, (1, T), generator=torch.Generator().manual_seed(3))
    assert model(ids[:, :16]).logits.isfinite().all()
    try:
        outcome = model(ids).logits
    except ConfigError as error:
        outcome = str(error)
    assert re.fullmatch(r".*position.*", outcome) if isinstance(outcome, str) else outcome.isfinite().all()


# --- RoPE ------------------------------------------------------------------------------------------------------------

ROPES = [(0.25, 10_000.0), (1.0, 10_000.0), (0.5, 500_000.0), (0.25, 100.0)]


@pytest.mark.parametrize(("pct", "base"), ROPES)
@pytest.mark.parametrize("start", [0, 2_000])
def test_rope_equals_transformers(pct, base, start):
    rope = {"rope_type": "default", "rope_theta": base, "partial_rotary_factor": pct}
    reference = GPTNeoXRotaryEmbedding(GPTNeoXConfig(hidden_size=H * 64, num_attention_heads=H, rope_parameters=rope))
    positions = start + torch.arange(48)[None]
    q, k = randn(2, 1, H, 48, 64)
    expected = apply_rotary_pos_emb(q, k, *reference(q, positions))
    actual = build("rope", head_dim=64, rotary_pct=pct, base=base).transform_qk(q, k, positions, q)
    torch.testing.assert_close(actual, expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize(("pct", "base"), ROPES)
def test_rope_is_a_complex_product(pct, base):
    """The docstring's definition, in complex fp64: pair (m, m + R/2) times exp(i · p · base^(-2m/R))."""
    T, R = 20, int(pct * 64)
    q = randn(1, H, T, 64)
    actual, _ = build("rope", head_dim=64, rotary_pct=pct, base=base).transform_qk(q, q, torch.arange(T)[None], q)
    pairs = torch.complex(q[..., : R // 2].double(), q[..., R // 2 : R].double())
    angles = torch.tensor([[p * base ** (-2 * m / R) for m in range(R // 2)] for p in range(T)], dtype=torch.float64)
    turned = pairs * torch.polar(torch.ones_like(angles), angles)
    torch.testing.assert_close(actual[..., :R].double(), torch.cat((turned.real, turned.imag), -1), atol=1e-5, rtol=0)
    assert torch.equal(actual[..., R:], q[..., R:])


def test_rope_scores_depend_on_distance_alone():
    T = 30
    q, k = (randn(1, H, 1, K, seed=seed).expand(-1, -1, T, -1) for seed in (1, 2))
    q, k = build("rope", rotary_pct=1.0).transform_qk(q, k, torch.arange(T)[None], q)
    scores = q @ k.mT
    torch.testing.assert_close(scores[..., 1:, 1:], scores[..., :-1, :-1], atol=1e-5, rtol=0)
    assert (scores[..., 0, 1:] - scores[..., 0, :-1]).abs().min() > 1e-4  # and they do depend on it


def test_rope_angles_are_exact_in_bf16():
    rope, positions = build("rope", rotary_pct=1.0), 1_000 + torch.arange(10)[None]
    q = randn(1, H, 10, K, dtype=torch.bfloat16)
    actual, _ = rope.transform_qk(q, q, positions, q)
    assert torch.equal(actual, rope.transform_qk(q.float(), q.float(), positions, q)[0].bfloat16())


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize(("name", "options"), [("rope", {"rotary_pct": 0}), ("alibi", {"slope": 0})])
def test_nothing_is_nope_to_the_bit(tiny, ids, name, options, attention):
    assert torch.equal(tiny(name, options, attention)(ids).logits, tiny("none", None, attention)(ids).logits)
    assert not torch.equal(tiny(name, None, attention)(ids).logits, tiny("none", None, attention)(ids).logits)


@pytest.mark.parametrize(
    ("options", "head_dim", "message"),
    [
        ({"rotary_pct": 0.3}, 64, r"rotary_pct=0\.3 of 64 dimensions is 19\.2; .*even .*0\.28125 or 0\.3125, say"),
        ({"rotary_pct": 1.01}, 64, r"rotary_pct=1\.01"),
        ({"rotary_pct": math.nan}, 64, "rotary_pct=nan"),
        ({"rotary_pct": True}, 64, "rotary_pct=True"),
        ({"base": 1}, 64, "base=1: .*greater than 1"),
        ({"base": math.inf}, 64, "base=inf"),
    ],
)
def test_rope_limits(options, head_dim, message):
    with pytest.raises(ConfigError, match=f"^encoding 'rope': .*{message}.*$"):
        build("rope", head_dim=head_dim, **options)


@pytest.mark.parametrize(
    ("options", "label"),
    [({}, "RoPE 25 %"), ({"rotary_pct": 1}, "RoPE 100 %"), ({"rotary_pct": 0.29}, "RoPE 29 %"),
     ({"rotary_pct": 0.5, "base": 500_000}, "RoPE 50 %, base 500000")],
)  # fmt: skip
def test_rope_label(options, label):
    assert encodings.label("rope", options) == label


# --- ALiBi -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("heads", [1, 2, 3, 4, 6, 8, 12, 16, 20, 32])
def test_alibi_slopes_are_blooms(heads):
    reference = build_alibi_tensor(torch.ones(1, 2, dtype=torch.long), heads, torch.float32)[:, 0, 1]
    torch.testing.assert_close(torch.tensor(build("alibi", heads).slopes()), reference, atol=0, rtol=1e-6)


def test_alibi_slopes_are_the_papers():
    assert build("alibi", 8).slopes() == [1 / 2, 1 / 4, 1 / 8, 1 / 16, 1 / 32, 1 / 64, 1 / 128, 1 / 256]


@pytest.mark.parametrize(("heads", "T", "S"), [(4, 7, 7), (8, 16, 16), (6, 3, 9), (12, 1, 10)])
def test_alibi_bias_equals_x_transformers(heads, T, S):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of its own imports
        from x_transformers.x_transformers import AlibiPositionalBias

        expected = AlibiPositionalBias(heads)(T, S)
    key = torch.arange(S)[None]
    actual = build("alibi", heads).bias(None, None, key[:, -T:], key, None)[0]
    # Softmax takes no notice of a constant per row, so rows are compared from their own (last visible) key on.
    visible = torch.ones(T, S).tril(S - T).bool()
    own = visible.sum(1) - 1
    actual, expected = (bias - bias[:, range(T), own][..., None] for bias in (actual, expected))
    torch.testing.assert_close(actual[:, visible], expected[:, visible], atol=1e-6, rtol=1e-6)


def test_alibi_by_hand():
    """The note's one slope, 1/16, for a row that begins at 0 and one that begins at 100."""
    positions = torch.tensor([[0, 1, 2], [100, 101, 102]])
    bias = build("alibi", 2, slope=0.0625).bias(None, None, positions[:, 1:], positions, None)
    expected = torch.tensor([[-0.0625, 0, 0.0625], [-0.125, -0.0625, 0]])
    assert torch.equal(bias.expand(2, 2, 2, 3), expected.expand(2, 2, 2, 3))


def test_alibi_distances_are_exact_in_bf16():
    """257 is no bf16 number; and no slope is no bias at all, which leaves attention its fast path."""
    q, key = randn(1, H, 1, K, dtype=torch.bfloat16), torch.arange(258)[None]
    bias = build("alibi", slope=1).bias(q, q, key[:, -1:], key, None)
    assert torch.equal(bias[0, 0, 0], torch.arange(-257.0, 1))
    assert build("alibi", slope=0).bias(q, q, key[:, -1:], key, None) is None


def test_alibi_labels_and_limits():
    labels = [encodings.label("alibi", options) for options in ({}, {"slope": 0.0625}, {"slope": 1})]
    assert labels == ["ALiBi per head", "ALiBi slope 0.0625", "ALiBi slope 1"]
    for slope in ("perhead", math.nan, True, None):
        with pytest.raises(ConfigError, match=f"^encoding 'alibi': slope={slope!r}: .+$"):
            encodings.options("alibi", {"slope": slope})


# --- learned ---------------------------------------------------------------------------------------------------------


def test_learned_adds_its_rows():
    hooks = build("learned", seq_len=8)
    torch.nn.init.normal_(hooks.table)
    x, positions = randn(2, 3, H * K), torch.tensor([[0, 1, 2], [5, 6, 7]])
    expected = [[x[b, t] + hooks.table[p] for t, p in enumerate(row)] for b, row in enumerate(positions.tolist())]
    assert torch.equal(hooks.embed(x, positions), torch.stack([torch.stack(row) for row in expected]))


def test_learned_table_has_an_end(tiny, ids):
    assert build("learned", seq_len=8).table.shape == (8, H * K)
    assert build("learned", seq_len=8, length=20).table.shape == (20, H * K)
    with pytest.raises(ConfigError, match=r"^seq_len=64 is longer than the learned table \(length=63\)$"):
        build("learned", seq_len=64, length=63)
    model = tiny("learned", max_position_embeddings=12)
    assert model(ids).logits.isfinite().all()
    for ask in (
        lambda: model(torch.cat((ids, ids[:, :1]), 1)),
        lambda: model(ids[:, :2], position_ids=torch.tensor([[11, 12]])),
        lambda: model.generate(ids, max_new_tokens=2, do_sample=False),
    ):
        with pytest.raises(ConfigError, match=r"^position 12 is beyond the learned table \(length=12\)$"):
            ask()


def test_slopes_fall_and_rotations_slow_down():
    """Both families spread their scales over orders of magnitude, monotonically."""
    assert all(a > b > 0 for a, b in pairwise(build("alibi", 8).slopes()))
    one = torch.ones(1, 1, 1, 32)
    turned, _ = build("rope", 1, 32, rotary_pct=1.0).transform_qk(one, one, torch.tensor([[1]]), one)
    angle = torch.atan2(turned[..., 16:], turned[..., :16]).flatten() - math.pi / 4
    assert all(a > b > 0 for a, b in pairwise(angle.tolist()))


# --- ALiBi, learned --------------------------------------------------------------------------------------------------


def test_learned_alibi_starts_as_alibi(tiny, ids):
    for start, slope in (("per-head", "per-head"), (0.0625, 0.0625)):
        hooks = build("alibi_learned", 6, start=start)
        hooks.init_parameter("log_slope", hooks.log_slope.data, None)
        key = torch.arange(9)[None]
        expected = build("alibi", 6, slope=slope).bias(None, None, key, key, None)
        torch.testing.assert_close(hooks.bias(None, None, key, key, None), expected, atol=1e-6, rtol=1e-6)
    model = LabForCausalLM(tiny("alibi_learned").config).initialise(0)
    assert model.encoding.log_slope.exp().tolist() == pytest.approx(build("alibi").slopes())
    for start in (0, -1, "perhead", True):
        with pytest.raises(ConfigError, match=f"^encoding 'alibi_learned': start={start!r}: .+$"):
            encodings.options("alibi_learned", {"start": start})
