"""Trained networks: which files are understood, and what is said of the others."""

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from networks.dan import DAN
from utils import checkpoint
from utils.errors import UserError
from utils.labels import AFFECTNET, RAFDB
from utils.trained import read_trained


@pytest.fixture(scope="module")
def states():
    """State dicts of untrained DANs by class count."""
    torch.manual_seed(0)
    return {n: DAN(num_class=n, num_head=2).state_dict() for n in (5, 7, 8)}


def released(path: Path, state: dict) -> Path:
    """A file of the released form."""
    torch.save({"iter": 5, "model_state_dict": state, "optimizer_state_dict": {}}, path)
    return path


@pytest.mark.parametrize(
    ("name", "count", "asked", "dataset", "classes"),
    [
        ("affecnet8_epoch5_acc0.6209.pth", 8, None, "AffectNet", AFFECTNET),
        ("affecnet7_epoch6_acc0.6569.pth", 7, None, "AffectNet", AFFECTNET[:7]),
        ("affectnet7_mine.pth", 7, None, "AffectNet", AFFECTNET[:7]),
        ("rafdb_epoch21_acc0.897_bacc0.8275.pth", 7, None, "RAF-DB", RAFDB),
        ("weights.pth", 8, None, "AffectNet", AFFECTNET),
        ("weights.pth", 7, "RAF-DB", "RAF-DB", RAFDB),
        ("weights.pth", 7, "AffectNet", "AffectNet", AFFECTNET[:7]),
    ],
)
def test_released_files(tmp_path, states, name, count, asked, dataset, classes):
    path = released(tmp_path / name, states[count])
    trained = read_trained(path, dataset=asked)
    assert (trained.dataset, trained.class_names) == (dataset, classes)
    assert (trained.num_head, trained.image_size, trained.toy, trained.epoch) == (2, 224, False, 5)
    model = DAN(num_class=count, num_head=2)
    trained.load_into(model)
    assert torch.equal(model.fc.weight, states[count]["fc.weight"])


@pytest.mark.parametrize(
    ("name", "count", "asked", "message"),
    [
        ("weights.pth", 7, None, "unknown order"),
        ("rafdb_weights.pth", 8, None, "8 classes, which RAF-DB does not"),
        ("rafdb_weights.pth", 5, None, "5 classes, which RAF-DB does not"),
        ("weights.pth", 8, "RAF-DB", "8 classes, which RAF-DB does not"),
    ],
)
def test_class_order_is_never_guessed(tmp_path, states, name, count, asked, message):
    path = released(tmp_path / name, states[count])
    with pytest.raises(UserError, match=message):
        read_trained(path, dataset=asked)


def test_name_and_flag_that_contradict(tmp_path, states):
    path = released(tmp_path / "rafdb_epoch21.pth", states[7])
    with pytest.raises(UserError, match="RAF-DB.*AffectNet"):
        read_trained(path, dataset="AffectNet")


@pytest.mark.parametrize("form", ["bare", "module.", "_orig_mod.module.", "float16", "bfloat16"])
def test_forms_whose_meaning_is_clear(tmp_path, states, form):
    state = states[8]
    if form.endswith("."):
        state = {f"{form}{key}": value for key, value in state.items()}
    if "float16" in form:
        dtype = getattr(torch, form)
        state = {k: v.to(dtype) if v.is_floating_point() else v for k, v in state.items()}
    path = tmp_path / "weights.pth"
    torch.save(state, path)
    trained = read_trained(path)
    model = DAN(num_class=8, num_head=2)
    trained.load_into(model)
    assert trained.state_dict["fc.weight"].dtype == torch.float32
    torch.testing.assert_close(model.fc.weight, states[8]["fc.weight"], rtol=1e-2, atol=1e-4)


def test_ours_know_their_classes(tmp_path, states):
    path = tmp_path / "best.pth"
    content = {
        "iter": 3,
        "model_state_dict": states[5],
        "class_names": list("abcde"),
        "dataset": "mine",
        "config": {"image_size": 96, "toy": True},
    }
    checkpoint.save(path, content)
    trained = read_trained(path)
    assert trained.class_names == tuple("abcde") and trained.dataset == "mine"
    assert (trained.image_size, trained.toy, trained.epoch) == (96, True, 3)
    with pytest.raises(UserError, match="trained on mine, but RAF-DB was asked for"):
        read_trained(path, dataset="RAF-DB")


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda s: s.pop("bn.weight"), "bn.weight"),
        (lambda s: s.update(extra=torch.zeros(1)), "extra"),
        (lambda s: s.update({"bn.bias": torch.zeros(3)}), "bn.bias"),
    ],
)
def test_weights_that_do_not_fit_are_named(tmp_path, states, change, named):
    state = dict(states[8])
    change(state)
    torch.save(state, tmp_path / "weights.pth")
    trained = read_trained(tmp_path / "weights.pth")
    with pytest.raises(UserError, match=named) as error:
        trained.load_into(DAN(num_class=8, num_head=2))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("content", [[1, 2], {"a": 1}, {"model_state_dict": 3}, torch.zeros(3)])
def test_other_contents(tmp_path, content):
    torch.save(content, tmp_path / "weights.pth")
    with pytest.raises(UserError):
        read_trained(tmp_path / "weights.pth")


# The few entries that are looked at before a network is filled: a file of kilobytes.
FEW = {
    "fc.weight": torch.zeros(3, 512),
    "cat_head0.sa.x": torch.zeros(2),
    "bn.num_batches_tracked": torch.tensor(7),
}
OURS = {
    "iter": 3,
    "model_state_dict": FEW,
    "class_names": ["a", "b", "c"],
    "dataset": "mine",
    "config": {"image_size": 96, "toy": True, "raf_path": "data"},
}


@pytest.mark.parametrize(
    ("key", "value", "named"),
    [
        ("fc.weight", torch.full((3, 512), float("nan")), "fc.weight holds NaN"),
        ("fc.weight", torch.full((3, 512), 1e300, dtype=torch.float64), "fc.weight holds NaN"),
        ("cat_head0.sa.x", torch.tensor([1, -torch.inf]), "cat_head0.sa.x holds NaN"),
        ("fc.weight", torch.zeros(3, 512, dtype=torch.int64), "fc.weight is not plain floats"),
        ("fc.weight", torch.zeros(3, 512, dtype=torch.complex64), "fc.weight is not plain floats"),
        ("fc.weight", torch.empty(3, 512, device="meta"), "fc.weight is not plain floats"),
        ("fc.weight", torch.zeros(1).expand(10**12, 512), "fc.weight is not plain floats"),
        ("fc.weight", torch.zeros(512), "not a trained DAN"),
        ("fc.weight", "text", "not a trained DAN"),
        ("cat_head2.sa.x", torch.zeros(2), "heads are numbered 0, 2"),
        ("module.cat_head7.sa.x", torch.zeros(2), "heads are numbered 0, 7"),
    ],
)
def test_bad_weights_are_named(tmp_path, key, value, named):
    torch.save({**OURS, "model_state_dict": {**FEW, key: value}}, tmp_path / "best.pth")
    with pytest.raises(UserError, match=named):
        read_trained(tmp_path / "best.pth")


def test_heads_without_a_first_one(tmp_path):
    state = {"fc.weight": FEW["fc.weight"], "cat_head1.sa.x": torch.zeros(2)}
    torch.save({**OURS, "model_state_dict": state}, tmp_path / "best.pth")
    with pytest.raises(UserError, match="heads are numbered 1"):
        read_trained(tmp_path / "best.pth")


def test_a_head_of_more_digits_than_python_turns_into_an_integer(tmp_path):
    state = {**FEW, f"cat_head{'9' * 5000}.x": torch.zeros(2)}
    torch.save({**OURS, "model_state_dict": state}, tmp_path / "best.pth")
    assert read_trained(tmp_path / "best.pth").num_head == 1


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"class_names": "abc"}, "class_names are no list of names"),
        ({"class_names": ["a", "b", 3]}, "class_names are no list of names"),
        ({"class_names": ["a", "b", "c\nd"]}, "class_names are no list of names"),
        ({"class_names": []}, "class_names are no list of names"),
        ({"class_names": ["a", "b"]}, "names 2 classes, but has 3"),
        ({"class_names": ["a", "b", "a"]}, "names a class twice"),
        ({"dataset": None}, "dataset is no name"),
        ({"dataset": 3}, "dataset is no name"),
        ({"config": [1]}, "config is no dict"),
        ({"config": {1: 2}}, "config is no dict"),
        ({"config": {"image_size": "96"}}, "image_size '96'"),
        ({"config": {"image_size": True}}, "image_size True"),
        ({"config": {"image_size": 10**9}}, "image_size 1000000000"),
        ({"config": {"toy": "no"}}, "toy 'no'"),
        ({"config": {"fold": {1: 2}}}, "fold {1: 2}"),
        ({"config": {"parts": ["a", torch.ones(1)]}}, "parts \\['a', tensor"),
    ],
)
def test_entries_of_other_types_are_named(tmp_path, change, named):
    torch.save({**OURS, **change}, tmp_path / "best.pth")
    with pytest.raises(UserError, match=named):
        read_trained(tmp_path / "best.pth")


TENSORS = st.builds(
    lambda shape, dtype, fill: torch.full(shape, fill).to(dtype),
    st.sampled_from([(), (0,), (1,), (3,), (3, 512), (7, 512), (2, 2, 2)]),
    st.sampled_from([torch.float32, torch.float16, torch.int64, torch.bool, torch.complex64]),
    st.sampled_from([0.0, 1.0, float("nan"), float("inf")]),
)
PLAIN = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary() | TENSORS
ANYTHING = st.recursive(
    PLAIN,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.tuples(inner)
        | st.dictionaries(st.text() | st.integers(), inner, max_size=3)
    ),
    max_leaves=6,
)
WEIGHTS = st.tuples(
    st.sampled_from([*FEW, "fc.bias", "module.fc.weight", "cat_head1.x", "cat_head01.x"]),
    TENSORS | PLAIN,
)
FLAGS = st.tuples(
    st.sampled_from(["image_size", "toy", "raf_path", "aff_path"]) | st.text(),
    PLAIN | st.integers(0, 5000),
)
ENTRIES = st.one_of(
    st.tuples(st.sampled_from(sorted(OURS)), ANYTHING),
    st.tuples(
        st.just("model_state_dict"),
        st.lists(WEIGHTS, min_size=1, max_size=2).map(lambda few: {**FEW, **dict(few)}),
    ),
    st.tuples(st.just("class_names"), st.lists(st.text(max_size=4), max_size=4)),
    st.tuples(st.just("dataset"), st.text()),
    st.tuples(st.just("config"), st.lists(FLAGS, max_size=2).map(dict)),
)
# Ours with one or two entries of another kind, or without one.
CONTENTS = st.builds(
    lambda changes, dropped: {k: v for k, v in {**OURS, **dict(changes)}.items() if k != dropped},
    st.lists(ENTRIES, max_size=2),
    st.none() | st.sampled_from(sorted(OURS)),
)


@settings(max_examples=250)
@given(CONTENTS | CONTENTS | ANYTHING, st.sampled_from(["best.pth", "rafdb.pth", "affecnet7.pth"]))
def test_no_content_leads_to_anything_but_a_network_or_one_line(
    tmp_path_factory, seven_classes, content, name
):
    path = tmp_path_factory.getbasetemp() / name
    torch.save(content, path)
    try:
        trained = read_trained(path)
        assert all(isinstance(name, str) and name.isprintable() for name in trained.class_names)
        assert (
            trained.state_dict["fc.weight"].shape[0]
            == trained.num_class
            == len(set(trained.class_names))
        )
        assert all(v.isfinite().all() for v in trained.state_dict.values())
        assert isinstance(trained.dataset, str) and isinstance(trained.toy, bool)
        assert 32 <= trained.image_size <= 4096 and isinstance(trained.epoch, int | None)
        trained.load_into(seven_classes)  # which lacks most of it
    except UserError as error:
        message = str(error)
        assert message.startswith(f"{path}: ") and message.isprintable() and len(message) < 800
    else:
        pytest.fail("a network was filled with a few of its weights")


@pytest.fixture(scope="module")
def seven_classes():
    return DAN(num_class=7, num_head=1)


def test_a_run_that_was_interrupted_early_has_no_best_yet(tmp_path):
    (tmp_path / "last.pth").touch()
    with pytest.raises(UserError, match=r"first epoch; use \S+last.pth, or .* by --resume"):
        read_trained(tmp_path / "best.pth")
