"""`compare`: figures of two files, against dense matrices in float64."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from commands import Command
from torch import Tensor
from workbench.files import CONV_IN, TEXT, TO_K, TO_Q, delta, factors, written

from lora_runtime.errors import LoraFileError
from lora_runtime.lora import load_lora
from lora_runtime.workbench import compare

INK = factors(TO_Q, 4) | factors(CONV_IN, 3) | factors(TEXT, 2)
WASH = factors(TO_Q, 2, seed=7) | factors(CONV_IN, 5, seed=8) | factors(TO_K, 2, seed=9)


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    return written(tmp_path / "ink.safetensors", INK), written(tmp_path / "wash.safetensors", WASH)


def spanned(matrix: Tensor) -> Tensor:
    """Return the projector onto a matrix's columns."""
    return matrix @ torch.linalg.pinv(matrix, rtol=1e-9)


def test_all_figures_of_a_module_are_those_of_the_dense_changes(files: tuple[Path, Path]) -> None:
    found = compare(f"{files[0]}:0.7", f"{files[1]}:-0.4")
    ink, wash = (delta(load_lora(path), TO_Q) * s for path, s in zip(files, (0.7, -0.4), strict=True))
    meeting = found.blocks["IN01"]
    assert meeting.modules == (1, 1, 1)
    assert meeting.norms == pytest.approx([float(ink.norm()), float(wash.norm())], rel=1e-9)
    assert meeting.together == pytest.approx(float((ink + wash).norm()), rel=1e-9)
    assert meeting.cosine == pytest.approx(float((ink * wash).sum() / ink.norm() / wash.norm()), rel=1e-9)
    # The trace of the product of projectors, of the lesser dimension, 2.
    assert meeting.outputs == pytest.approx(float((spanned(ink) * spanned(wash)).sum()) / 2, rel=1e-6)
    assert meeting.inputs == pytest.approx(float((spanned(ink.T) * spanned(wash.T)).sum()) / 2, rel=1e-6)
    assert meeting.conflicts == pytest.approx(float((ink * wash < 0).double().mean()))
    for matrix, rank in zip((ink, wash), meeting.ranks, strict=True):
        shares = torch.linalg.svdvals(matrix).square() / matrix.norm() ** 2
        shares = shares[shares > 1e-20]
        assert rank == pytest.approx(float(torch.exp(-(shares * shares.log()).sum())), rel=1e-6)


def test_blocks_and_modules_of_one_file_alone_count_for_it(files: tuple[Path, Path]) -> None:
    found = compare(*files)
    assert list(found.blocks) == ["BASE", "IN00", "IN01", "OUT03"]
    assert found.blocks["BASE"].modules == (1, 0, 0)
    assert (found.blocks["BASE"].cosine, found.blocks["BASE"].outputs) == (None, None)
    assert found.total.modules == (3, 3, 2)
    squares = sum(float(delta(load_lora(files[0]), stem).square().sum()) for stem in (TO_Q, CONV_IN, TEXT))
    assert found.total.norms[0] == pytest.approx(squares**0.5, rel=1e-9)


def test_the_same_file_twice_and_against_itself_is_told(files: tuple[Path, Path]) -> None:
    same = compare(files[0], files[0])
    assert same.total.cosine == pytest.approx(1)
    assert (same.total.outputs, same.total.conflicts) == (pytest.approx(1), 0)
    assert same.suggestions[0] == "ink and ink do nearly the same: cosine 1.00; one of them may be enough"
    assert same.suggestions[1].startswith("at 0.50 times their strengths")
    against = compare(files[0], f"{files[0]}:-0.5")
    assert against.blocks["IN01"].cosine == pytest.approx(-1)
    # ⟨Δ₁, −½Δ₁⟩ is half of ‖Δ₁‖² and twice ‖½Δ₁‖²; at 0.6 of −½ it is the 0.3 that a file may lose.
    assert against.suggestions[0] == (
        "ink and ink fight in IN00-01: cosine -1.00, which takes 50% of ink and 200% of ink; "
        "try ink with IN00-01=0.6, and ink loses 30%"
    )


def test_a_model_gives_the_norms_of_its_weights(files: tuple[Path, Path], tmp_path: Path) -> None:
    weight = torch.ones(12, 20)
    key = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q.weight".removeprefix("unet.")
    (tmp_path / "unet").mkdir()
    written(tmp_path / "unet" / "model.safetensors", {key: weight})
    found = compare(*files, model=tmp_path / "unet")
    assert found.blocks["IN01"].base == pytest.approx(240**0.5)
    assert found.blocks["IN00"].base is None


def test_whole_differences_are_compared_too(files: tuple[Path, Path], tmp_path: Path) -> None:
    ink = delta(load_lora(files[0]), TO_Q)
    full = written(tmp_path / "full.safetensors", {f"{TO_Q}.diff": ink.float(), f"{TO_Q}.diff_b": torch.ones(12)})
    assert compare(files[0], full).blocks["IN01"].cosine == pytest.approx(1, abs=1e-6)
    with pytest.raises(LoraFileError, match="ink and wash: no matrix is changed at these strengths"):
        compare(f"{files[0]}:0", f"{files[1]}:0")
    with pytest.raises(LoraFileError, match="3 files: two are compared"):
        compare("<lora:ink><lora:wash>", files[0], loras=[tmp_path])


def test_the_command_prints_a_table(command: Command, files: tuple[Path, Path]) -> None:
    result = command("compare", *files)
    assert (result.status, result.err) == (0, "")
    assert [line.split()[0] for line in result.out.splitlines()[2:7]] == ["BASE", "IN00", "IN01", "OUT03", "all"]
    assert json.loads(command("compare", *files, "--json").out)["names"] == ["ink", "wash"]
