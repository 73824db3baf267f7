"""What of a map is drawn: heads, rows, batches, and large maps in cells."""

import pytest
import torch

import regard
from drawn import check_opens, panels_of, words_of
from regard.attention.maps.map import AttentionMap
from regard.errors import ShapeError
from regard.figures import heatmap

ROWS, COLUMNS = ["the", "black", "cat"], ["le", "chat", "noir", "."]


def names_of(figure):
    """The names above the panels."""
    return [
        text.get_text()
        for axes in panels_of(figure)
        for text in axes.texts
        if text.get_text().startswith(("head", "sequence", "["))
    ]


@pytest.mark.parametrize("shape", [(2, 3), (1, 2, 3), (5, 2, 3), (2, 9, 2, 3), (3, 0, 2), (0, 2, 3)])
def test_every_entry_is_a_panel(tmp_path, shape):
    weights = torch.rand(shape)
    figure = AttentionMap.from_weights(weights).plot(tmp_path / "x.png")
    check_opens(tmp_path / "x.png")
    panels = panels_of(figure)
    matrices = weights.reshape(-1, *shape[-2:]) if weights.numel() else []
    assert len(panels) == len(matrices)
    for axes, matrix in zip(panels, matrices, strict=True):
        torch.testing.assert_close(torch.tensor(axes.images[0].get_array().tolist()), matrix)


def test_tokens_name_rows_and_columns():
    found = AttentionMap.from_weights(torch.rand(2, 3, 4), query_tokens=ROWS, key_tokens=COLUMNS)
    first, second = panels_of(found.plot())
    assert [label.get_text() for label in first.get_yticklabels()] == ROWS
    assert [[label.get_text() for label in axes.get_xticklabels()] for axes in (first, second)] == [COLUMNS] * 2
    (only,) = panels_of(found.plot(rows=[-1], heads=1))
    assert [label.get_text() for label in only.get_yticklabels()] == ["cat"]
    torch.testing.assert_close(torch.tensor(only.images[0].get_array().tolist()), found.tile([2], slice(None))[1])


def test_panels_are_named_by_what_their_axis_is():
    assert names_of(AttentionMap.from_weights(torch.rand(2, 2, 3, 3)).plot()) == [
        "sequence 0 · head 0", "sequence 0 · head 1", "sequence 1 · head 0", "sequence 1 · head 1",
    ]  # fmt: skip
    batch = AttentionMap.from_weights(torch.rand(1, 3, 3, 3))
    assert names_of(batch.plot(heads=[2, 0])) == ["head 2", "head 0"]
    assert names_of(batch.select(0).plot()) == ["head 0", "head 1", "head 2"]
    assert names_of(batch.select(slice(None), 0).plot()) == ["[0]"]  # heads no longer
    assert names_of(AttentionMap.from_weights(torch.rand(2, 3, 3)).plot()) == ["[0]", "[1]"]  # a batch, or heads


def test_panels_that_are_left_out_are_counted(tmp_path, monkeypatch):
    monkeypatch.setattr(heatmap, "PANELS", 4)
    weights = torch.rand(3, 2, 2, 2)
    figure = AttentionMap.from_weights(weights).plot(tmp_path / "x.svg")
    assert names_of(figure)[-1] == "sequence 1 · head 1"
    assert len(panels_of(figure)) == 4
    assert "the first 4 of 6 panels" in " ".join(words_of(tmp_path / "x.svg"))
    torch.testing.assert_close(torch.tensor(panels_of(figure)[3].images[0].get_array().tolist()), weights[1, 1])


def test_large_maps_are_the_largest_weights_of_cells():
    weights = torch.rand(2, 300, 520)
    figure = AttentionMap.from_weights(weights).plot()
    (first, _) = panels_of(figure)
    cells = torch.tensor(first.images[0].get_array().tolist())
    assert cells.shape == (150, 174)
    assert float(cells[3, 5]) == pytest.approx(float(weights[0, 6:8, 15:18].max()))
    assert any("the largest weight of 2 × 3" in text.get_text() for text in figure.texts)
    (some,) = panels_of(AttentionMap.from_weights(weights).plot(rows=slice(10, 299), heads=[1]))
    cells = torch.tensor(some.images[0].get_array().tolist())
    assert cells.shape == (145, 174)
    assert float(cells[-1, -1]) == pytest.approx(float(weights[1, 298:299, 519:].max()))


def test_maps_of_single_cells_do_not_speak_of_cells():
    figure = AttentionMap.from_weights(torch.rand(200, 200)).plot()
    assert not any("largest weight of" in text.get_text() for text in figure.texts)


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ({"heads": 2}, r"heads=2: this map has heads 0 to 1"),
        ({"heads": []}, r"heads=\[\]: this map has heads 0 to 1"),
        ({"rows": [3]}, r"rows=\[3\]: this map has rows 0 to 2"),
        ({"rows": slice(5, 9)}, r"rows=slice\(5, 9, None\): this map has rows 0 to 2"),
    ],
)
def test_what_is_not_there_is_refused(how, said):
    with pytest.raises(regard.ShapeError, match=said):
        AttentionMap.from_weights(torch.rand(2, 3, 4)).plot(**how)


def test_a_map_without_heads_has_none_to_choose():
    with pytest.raises(regard.ShapeError, match=r"heads=0: this map has no heads: its shape is \[3, 4\]"):
        AttentionMap.from_weights(torch.rand(3, 4)).plot(heads=0)


def test_names_of_a_large_map_are_few():
    """A name for each of 256 cells took most of the time of drawing."""
    figure = AttentionMap.from_weights(torch.rand(2, 512, 512)).plot()
    assert all(len(axes.get_xticks()) + len(axes.get_yticks()) < 30 for axes in panels_of(figure))


def test_rows_as_bools() -> None:
    seen = regard.attention_map(torch.randn(2, 5, 3), torch.randn(2, 4, 3))
    some = torch.tensor([True, False, True, False, False])
    for rows in (some, some.tolist()):
        figure = seen.plot(rows=rows)
        assert figure.axes[0].images[0].get_array().shape[0] == 2
    with pytest.raises(ShapeError, match="expected 5 bools"):
        seen.plot(rows=torch.tensor([True, False]))
