"""What the settings and the passes of a generation ask for: always-on LoRAs, hires, encoded prompts, embeddings."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest
import torch
from double import loras
from double.loras import plain

from lora_runtime.wildcards import draw_name

if TYPE_CHECKING:
    from double.webui import WebUI


def wrong(weights: Any, *wanted: Any) -> list[str]:
    return loras.differences(weights, plain(), loras.patched(plain(), wanted))


# --- the LoRA that every prompt gets ---


def test_the_always_on_lora_is_in_every_batch_and_pass_once(webui: WebUI, ink: loras.File) -> None:
    webui.options.sd_lora = "ink"
    webui.options.extra_networks_default_multiplier = 0.6
    done = webui.generate("a", enable_hr=True, n_iter=2)
    assert [run.name for run in done.passes] == ["first", "hires"] * 2
    for run in done.passes:
        assert wrong(run.weights, (ink, 0.6)) == []
        assert run.conditioning.prompts == ("a",)
    assert webui.job.all_prompts == ["a<lora:ink:0.6>"] * 2
    assert webui.job.all_hr_prompts == ["a<lora:ink:0.6>"] * 2
    assert done.comments == []
    assert wrong(webui.generate("b").passes[0].weights, (ink, 0.6)) == []


def test_the_always_on_lora_gives_way_to_a_tag_of_its_name(webui: WebUI, ink: loras.File) -> None:
    webui.options.sd_lora = "ink"
    done = webui.generate("a <lora:ink:0.2>", enable_hr=True, n_iter=2)
    assert all(wrong(run.weights, (ink, 0.2)) == [] for run in done.passes)
    assert webui.job.all_prompts == ["a <lora:ink:0.2>"] * 2


def test_the_always_on_lora_joins_the_tags_of_a_batch(webui: WebUI, ink: loras.File) -> None:
    wash = loras.write(webui.loras / "wash.safetensors", plain(), seed=1)
    webui.options.sd_lora = "ink"
    done = webui.generate(["a <lora:wash:0.5>", "b <lora:wash:0.5>"], batch_size=2)
    assert wrong(done.passes[0].weights, (ink, 1.0), (wash, 0.5)) == []
    assert done.comments == []


@pytest.mark.parametrize("value", ["None", ""])
def test_without_an_always_on_lora_prompts_stay_as_they_are(webui: WebUI, ink: loras.File, value: str) -> None:
    webui.options.sd_lora = value
    webui.generate("a")
    assert webui.job.all_prompts == ["a"]
    assert webui.not_whole() == []


def test_an_always_on_lora_that_is_gone_is_said_once(webui: WebUI) -> None:
    webui.options.sd_lora = "gone"
    done = webui.generate("a", n_iter=2)
    assert len(done.comments) == 1
    assert '"gone"' in done.comments[0]


# --- encoded prompts, which the program keeps ---


def test_a_file_written_anew_has_the_prompts_encoded_anew(webui: WebUI) -> None:
    """Also where only the text encoder changes, whose output the program keeps by the text of the tags."""
    path = webui.loras / "ink.safetensors"
    loras.write(path, plain(), seed=1, only="_te_")
    first = webui.generate("a <lora:ink>")
    key = webui.job.extra_network_data
    again = loras.write(path, plain(), seed=2, only="_te_")
    second = webui.generate("a <lora:ink>")
    assert webui.job.extra_network_data != key
    assert second.passes[0].conditioning is not first.passes[0].conditioning
    assert wrong(second.passes[0].conditioning.weights, (again, 1.0)) == []


def test_prompts_are_encoded_once_while_nothing_changes(webui: WebUI, ink: loras.File) -> None:
    first = webui.generate("a <lora:ink>").passes[0].conditioning
    assert webui.generate("a <lora:ink>").passes[0].conditioning is first
    assert webui.generate("a <lora:ink:0.5>").passes[0].conditioning is not first


def test_a_lora_that_was_missing_and_is_there_now_has_the_prompts_encoded_anew(webui: WebUI) -> None:
    webui.generate("a <lora:ink>")
    ink = loras.write(webui.loras / "ink.safetensors", plain(), only="_te_")
    assert wrong(webui.generate("a <lora:ink>").passes[0].conditioning.weights, (ink, 1.0)) == []


@pytest.mark.parametrize("hires", ["", "b <lora:wash:0.6>", "b", "b <lora:ink:0.7>"])
def test_where_memory_is_scarce_the_hires_prompts_are_encoded_first_and_with_their_own_tags(
    start: Callable[..., WebUI], hires: str
) -> None:
    webui = start(medvram=True)
    ink = loras.write(webui.loras / "ink.safetensors", plain())
    wash = loras.write(webui.loras / "wash.safetensors", plain(), seed=1)
    wanted = {"": [(ink, 0.7)], "b <lora:wash:0.6>": [(wash, 0.6)], "b": [], "b <lora:ink:0.7>": [(ink, 0.7)]}[hires]
    for _ in range(2):
        done = webui.generate("a <lora:ink:0.7>", enable_hr=True, hr_prompt=hires, n_iter=2)
        for run in done.passes:
            tags = [(ink, 0.7)] if run.name == "first" else wanted
            assert wrong(run.weights, *tags) == []
            assert wrong(run.conditioning.weights, *tags) == []
        hashes = done.extra_generation_params["Lora hashes"]
        assert [part.split(":")[0] for part in hashes.split(", ")] == (["ink", "wash"] if "wash" in hires else ["ink"])
        assert done.comments == []


@pytest.mark.parametrize("medvram", [False, True])
def test_what_is_wrong_in_the_hires_prompt_is_said_once_with_its_place_there(
    start: Callable[..., WebUI], medvram: bool
) -> None:
    webui = start(medvram=medvram)
    loras.write(webui.loras / "ink.safetensors", plain())
    done = webui.generate("a <lora:ink>", enable_hr=True, hr_prompt="the b <lora:nobody>", n_iter=2)
    [comment] = done.comments
    assert comment.startswith('LoRA error: column 7: no LoRA named "nobody"')


@pytest.mark.parametrize("medvram", [False, True])
def test_hires_prompts_are_encoded_once_while_nothing_changes(start: Callable[..., WebUI], medvram: bool) -> None:
    webui = start(medvram=medvram)
    for index, name in enumerate(("ink", "wash")):
        loras.write(webui.loras / f"{name}.safetensors", plain(), seed=index)
    job = {"enable_hr": True, "hr_prompt": "b <lora:wash>"}
    first = webui.generate("a <lora:ink>", **job).passes[1].conditioning
    assert webui.generate("a <lora:ink>", **job).passes[1].conditioning is first
    wash = loras.write(webui.loras / "wash.safetensors", plain(), seed=7)
    again = webui.generate("a <lora:ink>", **job).passes[1].conditioning
    assert wrong(again.weights, (wash, 1.0)) == []


# --- hashes in the picture's parameters ---


def sha256_of_tensors(path: Any) -> str:
    """Return the first 12 digits of the hash of all after the header, as the WebUI knows LoRAs."""
    import hashlib

    data = path.read_bytes()
    return hashlib.sha256(data[8 + int.from_bytes(data[:8], "little") :]).hexdigest()[:12]


def test_the_parameters_have_name_and_hash_of_each_file(webui: WebUI, ink: loras.File) -> None:
    wash = loras.write(webui.loras / "style" / "wash, soft.safetensors", plain(), seed=1)
    done = webui.generate("a <lora:wash, soft:0.5> <lora:ink> <lora:nobody>")
    ours, theirs = sha256_of_tensors(ink.path), sha256_of_tensors(wash.path)
    assert done.extra_generation_params["Lora hashes"] == f"wash soft: {theirs}, ink: {ours}"


def test_the_hires_pass_adds_its_files(webui: WebUI, ink: loras.File) -> None:
    wash = loras.write(webui.loras / "wash.safetensors", plain(), seed=1)
    done = webui.generate("a <lora:ink>", enable_hr=True, hr_prompt="b <lora:wash>", n_iter=2)
    ours, theirs = sha256_of_tensors(ink.path), sha256_of_tensors(wash.path)
    assert done.extra_generation_params["Lora hashes"] == f"ink: {ours}, wash: {theirs}"


def test_of_a_wildcard_the_files_that_the_batch_has_drawn_have_their_hashes(webui: WebUI) -> None:
    files = {f"style/{name}": loras.write(webui.loras / "style" / f"{name}.safetensors", plain()) for name in "abcd"}
    drawn = dict.fromkeys(draw_name("style/*", files, seed) for seed in (5, 6, 7))
    assert 1 < len(drawn) < len(files)
    done = webui.generate("a <lora:style/*:0.7> <lora:nowhere/*>", seed=5, batch_size=3)
    expected = ", ".join(f"{name}: {sha256_of_tensors(files[name].path)}" for name in drawn)
    assert done.extra_generation_params["Lora hashes"] == expected


def test_without_loras_or_where_the_settings_say_so_there_are_no_hashes(webui: WebUI, ink: loras.File) -> None:
    assert "Lora hashes" not in webui.generate("a").extra_generation_params
    webui.options.lora_add_hashes_to_infotext = False
    assert "Lora hashes" not in webui.generate("a <lora:ink>").extra_generation_params


def test_a_batch_without_tags_does_not_keep_the_hashes_of_the_one_before(webui: WebUI, ink: loras.File) -> None:
    done = webui.generate(["a <lora:ink>", "b"], n_iter=2)
    assert "Lora hashes" not in done.extra_generation_params


# --- embeddings in LoRA files ---


def bundle(name: str, width: int = 12) -> dict[str, torch.Tensor]:
    return {f"bundle_emb.{name}.emb_params": torch.ones(2, width)}


def test_the_words_in_a_file_are_known_while_its_tag_is_in_the_prompt(webui: WebUI) -> None:
    loras.write(webui.loras / "ink.safetensors", plain(), more=bundle("inkword"))
    done = webui.generate("a inkword <lora:ink:0>")
    assert done.passes[0].conditioning.words == ("inkword",)
    embedding = webui.embeddings.word_embeddings["inkword"]
    assert embedding.shorthash == "ink"
    assert embedding.shape == 12
    assert embedding.vectors == 2
    assert webui.generate("a inkword").passes[0].conditioning.words == ()
    assert webui.embeddings.word_embeddings == webui.embeddings.ids_lookup == {}


def test_a_word_of_the_user_s_own_stays_that(webui: WebUI) -> None:
    from modules.textual_inversion.textual_inversion import create_embedding_from_data

    loras.write(webui.loras / "ink.safetensors", plain(), more=bundle("inkword"))
    own = create_embedding_from_data({"x": torch.zeros(1, 12)}, "inkword")
    webui.embeddings.on_disk.append(own)
    for prompt in ("a inkword <lora:ink>", "a inkword"):
        webui.generate(prompt)
        assert webui.embeddings.word_embeddings == {"inkword": own}


def test_a_word_for_a_text_encoder_of_another_width_is_left_out(webui: WebUI) -> None:
    loras.write(webui.loras / "ink.safetensors", plain(), more=bundle("inkword", width=16))
    assert webui.generate("a inkword <lora:ink>").passes[0].conditioning.words == ()


def test_words_are_known_again_after_another_checkpoint_was_loaded(webui: WebUI) -> None:
    loras.write(webui.loras / "ink.safetensors", plain(), more=bundle("inkword"))
    webui.options.sd_checkpoints_limit = 2
    webui.generate("a inkword <lora:ink>")
    webui.choose_checkpoint("b")
    assert webui.generate("a inkword <lora:ink>").passes[0].conditioning.words == ("inkword",)
    webui.choose_checkpoint("a")
    assert webui.generate("a inkword").passes[0].conditioning.words == ()


@pytest.mark.parametrize("listed", [True, False])
def test_the_words_hash_is_the_lora_s_name_where_the_settings_say_so(webui: WebUI, listed: bool) -> None:
    loras.write(webui.loras / "ink.safetensors", plain(), more=bundle("inkword"))
    webui.options.lora_bundled_ti_to_infotext = listed
    webui.generate("a inkword <lora:ink>")
    assert webui.embeddings.word_embeddings["inkword"].shorthash == ("ink" if listed else "")


def test_reload_ui_forgets_the_words(webui: WebUI) -> None:
    loras.write(webui.loras / "ink.safetensors", plain(), more=bundle("inkword"))
    webui.generate("a inkword <lora:ink>")
    webui.reload_ui()
    assert webui.embeddings.words_in("a inkword") == []
    assert webui.embeddings.word_embeddings == {}


# --- memory ---


@pytest.mark.quick(2)
@pytest.mark.parametrize(("limit", "again"), [(1, ["f2", "f1", "f0"]), (2, ["f1", "f0"]), (3, ["f0"]), (0, [])])
def test_no_more_files_stay_in_memory_than_the_settings_say(
    webui: WebUI, monkeypatch: pytest.MonkeyPatch, limit: int, again: list[str]
) -> None:
    from lora_runtime import lora_cache

    read: list[str] = []
    original = lora_cache.load_lora
    monkeypatch.setattr(
        lora_cache, "load_lora", lambda path, **given: (read.append(path.stem), original(path, **given))[1]
    )
    webui.options.lora_in_memory_limit = limit
    files = [loras.write(webui.loras / f"f{index}.safetensors", plain(), seed=index) for index in range(4)]
    for index in (0, 1, 2, 3, 2, 1, 0):
        webui.generate(f"a <lora:f{index}>")
    assert read == ["f0", "f1", "f2", "f3", *again]
    done = webui.generate("a <lora:f0:0.1> <lora:f1:0.1> <lora:f2:0.1>")  # those of one picture always have room
    assert wrong(done.passes[0].weights, *((file, 0.1) for file in files[:3])) == []


# --- settings that change the picture ---

ACTING, EDITED = "apply to the negative side", "while its words are in the prompt"


def effective(done: Any) -> list[list[torch.Tensor]]:
    return done.passes[0].effective


def equal(one: Any, other: Any) -> bool:
    pairs = zip(effective(one), effective(other), strict=True)
    same = all(torch.equal(a, b) for rows, others in pairs for a, b in zip(rows, others, strict=True))
    texts = [[c.text for parts in done.passes[0].conditioning.batch for c in parts] for done in (one, other)]
    return same and texts[0] == texts[1]


@pytest.mark.quick(2)
@pytest.mark.parametrize(
    ("setting", "value", "field"),
    [
        ("lora_runtime_negative_tags", ACTING, "LoRA negative tags"),
        ("lora_runtime_scope", EDITED, "LoRA scope"),
        ("sd_lora", "wash", "LoRA always on"),
    ],
)
@pytest.mark.parametrize("direction", ["then on", "now on"])
def test_a_picture_is_painted_again_as_it_was_whatever_the_settings_are_now(
    webui: WebUI, ink: loras.File, setting: str, value: str, field: str, direction: str
) -> None:
    loras.write(webui.loras / "wash.safetensors", plain(), seed=5)
    usual = getattr(webui.options, setting)
    then, now = (value, usual) if direction == "then on" else (usual, value)
    job = {"negative_prompt": "bad <lora:wash:0.5>"} if "negative" in setting else {}
    prompt = "a [<lora:ink:1>wet:dry:0.5]"
    setattr(webui.options, setting, then)
    first = webui.generate(prompt, **job)
    assert first.extra_generation_params.get(field) == (then if then == value else None)
    setattr(webui.options, setting, now)
    assert not equal(webui.generate(prompt, **job), first)
    again = webui.replay(first)
    assert equal(again, first)
    assert getattr(webui.options, setting) == now


def test_settings_are_not_written_beside_pictures_without_a_lora(webui: WebUI, ink: loras.File) -> None:
    webui.options.lora_runtime_scope = EDITED
    assert webui.generate("a").extra_generation_params == {}
    assert "LoRA scope" in webui.generate("a <lora:ink>").extra_generation_params


def test_a_pasted_prompt_alone_changes_no_setting(webui: WebUI) -> None:
    webui.options.sd_lora = "ink"
    assert "LoRA always on" not in webui.paste("a <lora:ink:1>")


def test_frozen_settings_are_read_and_never_set(webui: WebUI, ink: loras.File) -> None:
    webui.module("shared").cmd_opts.freeze_settings = True
    before = dict(webui.options.data)
    done = webui.generate("a <lora:ink:0.5>")
    assert loras.differences(done.passes[0].weights, plain(), loras.patched(plain(), [(ink, 0.5)])) == []
    webui.reload_ui()
    webui.replay(done)
    assert webui.options.data == before
    assert webui.errors == []
