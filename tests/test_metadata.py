"""What a header says, and what is refused. Expected values are read off the format's page, not computed by the code."""

from __future__ import annotations

import hashlib
import json
import os
import struct
import subprocess
import sys
from pathlib import Path

import pytest
from handmade import frame, tensor, write
from hypothesis import given
from hypothesis import strategies as st

from lora_runtime.errors import CorruptFileError, LoraError, LoraFileError, RefusedFileError
from lora_runtime.header import conversion_hint, reason_of
from lora_runtime.metadata import Description, Header, TensorInfo, describe, hashes, read_header


def described(tmp_path: Path, *keys: str, metadata: dict[str, str] | None = None, **shapes: list[int]) -> Description:
    """Return the description of a file with these keys; a key's shape comes after "=": "x.lora_down.weight=4,768"."""
    tensors = {}
    for key in keys:
        name, _, shape = key.partition("=")
        tensors[name] = ("F32", [int(extent) for extent in shape.split(",") if extent])
    return describe(read_header(write(tmp_path / "a.safetensors", tensors, metadata)))


def corrupt(tmp_path: Path, content: bytes) -> str:
    """Return the message for a file with this content, which must be refused as corrupt."""
    path = tmp_path / "bad.safetensors"
    path.write_bytes(content)
    with pytest.raises(CorruptFileError) as caught:
        read_header(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: not a valid safetensors file: ")
    assert "\n" not in message
    return message


class TestReadHeader:
    def test_it_gives_names_dtypes_shapes_places_and_metadata(self, tmp_path: Path) -> None:
        header = {"__metadata__": {"k": "v"}, "a": tensor("F16", [2, 3]), "b": tensor("BF16", [], 12)}
        path = tmp_path / "a.safetensors"
        path.write_bytes(frame(header, bytes(14)))
        start = 8 + len(json.dumps(header))
        assert read_header(path) == Header(
            path,
            start + 14,
            {"k": "v"},
            {"a": TensorInfo("F16", (2, 3), start, start + 12), "b": TensorInfo("BF16", (), start + 12, start + 14)},
        )

    def test_it_reads_what_the_safetensors_library_writes(self, tmp_path: Path) -> None:
        torch = pytest.importorskip("torch")
        from safetensors.torch import save_file

        dtypes = {"BF16": torch.bfloat16, "F8_E4M3": torch.float8_e4m3fn, "F64": torch.float64, "BOOL": torch.bool}
        path = tmp_path / "a.safetensors"
        save_file({name: torch.zeros(2, 5, dtype=dtype) for name, dtype in dtypes.items()}, path, {"a": "é"})
        header = read_header(path)
        assert {name: (info.dtype, info.shape) for name, info in header.tensors.items()} == {
            name: (name, (2, 5)) for name in dtypes
        }
        assert header.metadata == {"a": "é"}

    def test_a_file_without_tensors_or_metadata_is_valid(self, tmp_path: Path) -> None:
        path = tmp_path / "a.safetensors"
        path.write_bytes(frame({}))
        assert read_header(path) == Header(path, 10, {}, {})

    def test_a_header_may_be_padded_with_blanks_and_its_tensors_come_in_any_order(self, tmp_path: Path) -> None:
        path = tmp_path / "a.safetensors"
        path.write_bytes(
            frame(json.dumps({"b": tensor("U8", [1], 1), "a": tensor("U8", [1])}).encode() + b"   ", b"xy")
        )
        assert set(read_header(path).tensors) == {"a", "b"}

    def test_a_length_that_looks_like_a_pickle_is_still_a_length(self, tmp_path: Path) -> None:
        # 0x0280 little-endian begins with the two bytes of a pickle of protocol 2.
        path = tmp_path / "a.safetensors"
        path.write_bytes(frame(b"{}".ljust(0x280)))
        assert read_header(path).tensors == {}

    def test_the_file_can_be_replaced_while_its_header_is_in_use(self, tmp_path: Path) -> None:
        path = write(tmp_path / "a.safetensors")
        header = read_header(path)
        write(tmp_path / "b.safetensors", {"new": ("F32", [])}).replace(path)
        assert set(header.tensors) == {"x.lora_down.weight"}
        assert set(read_header(path).tensors) == {"new"}

    def test_nothing_heavy_is_imported(self) -> None:
        code = "import sys, lora_runtime.metadata; print(sorted({'torch', 'numpy', 'safetensors'} & set(sys.modules)))"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert done.stdout.strip() == "[]"

    @pytest.mark.parametrize(
        ("content", "reason"),
        [
            (b"", "it is empty"),
            (b"\1\2\3", "it is only 3 bytes long"),
            (struct.pack("<Q", 100) + b"{}", "its header should have 100 bytes, and the whole file has 10"),
            (frame(b"[]"), "the header does not begin with {"),
            (frame(b"\xff{}"), "the header is not UTF-8 at byte 8"),
            (frame(b"{"), "the header is not JSON: "),
            (frame(b'{"a": NaN}'), "the header is not JSON: NaN is no JSON number"),
            (frame(b'{"a":' + b"[" * 200_000), "the header is "),
            (frame("{}".encode("utf-16")), "the header is not UTF-8"),
            (frame({"__metadata__": {"a": 1}}), "__metadata__ is not a table of strings"),
            (frame({"__metadata__": []}), "__metadata__ is not a table of strings"),
            (frame({"a": 1}), "tensor 'a' has no known dtype, or lacks its shape or data_offsets"),
            (frame({"a": {"dtype": [], "shape": [], "data_offsets": [0, 0]}}), "no known dtype"),
            (frame({"a": {"dtype": "F7", "shape": [], "data_offsets": [0, 0]}}), "no known dtype"),
            (frame({"a": {"dtype": "U8", "shape": [], "data_offsets": [0]}}), "lacks its shape or data_offsets"),
            (frame({"a": {"dtype": "U8", "shape": 1, "data_offsets": [0, 1]}}, b"x"), "must be whole numbers from 0"),
            (frame({"a": tensor("U8", [-1], 0, 1)}, b"x"), "must be whole numbers from 0"),
            (frame({"a": {"dtype": "U8", "shape": [True], "data_offsets": [0, 1]}}, b"x"), "must be whole numbers"),
            (frame({"a": tensor("U8", [1], -1, 0)}, b"x"), "must be whole numbers from 0"),
            (frame({"a": tensor("F32", [2**40, 2**40], 0, 0)}), "tensor 'a' is impossibly large"),
            (frame({"a": tensor("F32", [2], 0, 4)}, bytes(4)), "tensor 'a': F32 [2] does not fill bytes 0 to 4"),
            (frame({"a": tensor("U8", [2]), "b": tensor("U8", [2], 1)}, b"xyz"), "tensor 'b' overlaps another"),
            (frame({"a": tensor("U8", [1], 1)}, b"xy"), "tensor 'a' leaves a gap before it"),
            (frame({"a": tensor("U8", [9])}, b"xyz"), "the file is cut off"),
            (frame({"a": tensor("U8", [1])}, b"xyz"), "the file has bytes that belong to no tensor"),
            (b"<!DOCTYPE html><html>", "it is a web page, not the file: the download probably asks for a login"),
            (b"version https://git-lfs.github.com/spec/v1\n", "it is a git-lfs pointer"),
        ],
    )
    def test_an_invalid_file_is_corrupt_with_the_reason(self, tmp_path: Path, content: bytes, reason: str) -> None:
        assert reason in corrupt(tmp_path, content)

    def test_a_header_longer_than_the_format_allows_is_not_read(self, tmp_path: Path) -> None:
        path = tmp_path / "a.safetensors"
        with path.open("wb") as file:  # sparse: takes no room
            file.write(struct.pack("<Q", 100_000_001))
            file.truncate(100_000_100)
        with pytest.raises(CorruptFileError, match="its header has 100,000,001 bytes; the format allows 100,000,000"):
            read_header(path)

    @given(data=st.data())
    def test_a_damaged_file_raises_a_lora_error_or_is_still_valid(
        self, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
    ) -> None:
        whole = frame({"__metadata__": {"a": "b"}, "x": tensor("F16", [2, 3]), "y": tensor("U8", [4], 12)}, bytes(16))
        content = bytearray(whole)
        for _ in range(data.draw(st.integers(1, 4))):
            place = data.draw(st.integers(0, len(content) - 1))
            content[place : place + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=3))
        path = tmp_path_factory.mktemp("damaged") / "a.safetensors"
        path.write_bytes(content)
        try:
            describe(read_header(path))
        except LoraError as error:
            assert str(path) in str(error)

    @given(
        header=st.dictionaries(
            st.sampled_from(["a", "b", "__metadata__"]),
            st.recursive(
                st.none() | st.booleans() | st.integers(-1, 2**70) | st.floats() | st.sampled_from(["F32", "U8", ""]),
                lambda inner: (
                    st.lists(inner, max_size=3)
                    | st.dictionaries(st.sampled_from(["dtype", "shape", "data_offsets"]), inner)
                ),
                max_leaves=9,
            ),
        ),
        data=st.binary(max_size=9),
    )
    def test_any_header_raises_a_lora_error_or_is_valid(
        self, tmp_path_factory: pytest.TempPathFactory, header: dict[str, object], data: bytes
    ) -> None:
        path = tmp_path_factory.mktemp("any") / "a.safetensors"
        path.write_bytes(frame(header, data))
        try:
            describe(read_header(path))
        except LoraError as error:
            assert str(path) in str(error)


class TestRefused:
    @pytest.mark.parametrize("suffix", [".pt", ".pth", ".ckpt", ".bin", ".PT"])
    def test_a_pickle_is_refused_by_its_name_and_not_opened(self, tmp_path: Path, suffix: str) -> None:
        path = tmp_path / f"ink{suffix}"  # not there: opening it would raise something else
        with pytest.raises(RefusedFileError) as caught:
            read_header(path)
        assert str(caught.value).startswith(f"{path}: {suffix} files are pickles, which can run code when read")
        assert "weights_only=True" in str(caught.value)

    @pytest.mark.parametrize(
        "magic", [b"PK\x03\x04", b"\x80\x02\x8a\x0al\xfc\x9cF", b"\x80\x04\x95" + bytes(4) + b"\1"]
    )
    def test_a_pickle_under_another_name_is_refused_too(self, tmp_path: Path, magic: bytes) -> None:
        path = tmp_path / "ink.safetensors"
        path.write_bytes(magic + bytes(range(60)))
        with pytest.raises(RefusedFileError, match="a pickle under another name"):
            read_header(path)

    def test_the_way_to_convert_works(self, tmp_path: Path) -> None:
        torch = pytest.importorskip("torch")
        torch.save({"state_dict": {"a": torch.ones(2, 3).t()}}, tmp_path / "old one.ckpt")
        command = conversion_hint(tmp_path / "old one.ckpt").partition(": ")[2].removeprefix("python")
        subprocess.run(f'"{sys.executable}"{command}', shell=True, cwd=tmp_path, check=True, capture_output=True)
        assert read_header(tmp_path / "old one.safetensors").tensors["a"].shape == (3, 2)

    def test_converting_a_pickle_under_another_name_does_not_write_over_it(self) -> None:
        assert conversion_hint("ink.safetensors").endswith(" ink.safetensors ink.converted.safetensors")

    def test_a_name_with_blanks_is_quoted(self) -> None:
        quote = '"' if os.name == "nt" else "'"
        assert conversion_hint("a b.pt").endswith(f" {quote}a b.pt{quote} {quote}a b.safetensors{quote}")

    def test_the_reason_alone_has_neither_path_nor_hint(self, tmp_path: Path) -> None:
        path = tmp_path / "ink.pt"
        with pytest.raises(RefusedFileError) as caught:
            read_header(path)
        assert reason_of(caught.value, path) == ".pt files are pickles, which can run code when read; never opened."


class TestUnreadable:
    def test_a_missing_file_is_named(self, tmp_path: Path) -> None:
        with pytest.raises(LoraFileError, match=r"a\.safetensors: cannot be read: No such file"):
            read_header(tmp_path / "a.safetensors")
        with pytest.raises(LoraFileError, match=r"a\.safetensors: cannot be read: No such file"):
            hashes(tmp_path / "a.safetensors")

    def test_a_folder_is_no_file(self, tmp_path: Path) -> None:
        with pytest.raises(LoraFileError, match="cannot be read: not a regular file"):
            read_header(tmp_path)

    @pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
    def test_a_pipe_is_not_waited_for(self, tmp_path: Path) -> None:
        os.mkfifo(tmp_path / "a.safetensors")
        with pytest.raises(LoraFileError, match="not a regular file"):
            read_header(tmp_path / "a.safetensors")

    def test_a_nul_in_the_name_is_an_error_of_this_library(self) -> None:
        with pytest.raises(LoraFileError):
            read_header("a\0.safetensors")


class TestHashes:
    def test_they_are_of_the_whole_file_and_of_what_follows_the_header(self, tmp_path: Path) -> None:
        data = os.urandom(5_000_000)  # several pieces
        path = write(tmp_path / "a.safetensors", {"a": ("U8", [len(data)], data)}, {"ss_output_name": "a"})
        found = hashes(path)
        assert found.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
        assert found.sha256_of_tensors == hashlib.sha256(data).hexdigest()

    def test_the_second_does_not_change_with_the_metadata_and_does_not_believe_them(self, tmp_path: Path) -> None:
        tensors = {"a": ("U8", [3], b"abc")}
        one = hashes(write(tmp_path / "a.safetensors", tensors))
        other = hashes(write(tmp_path / "b.safetensors", tensors, {"sshs_model_hash": "0" * 64}))
        assert one.sha256_of_tensors == other.sha256_of_tensors == hashlib.sha256(b"abc").hexdigest()
        assert one.sha256 != other.sha256

    def test_a_file_shorter_than_its_header_is_corrupt(self, tmp_path: Path) -> None:
        (tmp_path / "a.safetensors").write_bytes(struct.pack("<Q", 100))
        with pytest.raises(CorruptFileError, match="its header should have 100 bytes"):
            hashes(tmp_path / "a.safetensors")


class TestAlgorithm:
    # Suffixes and shapes as in the published files of each kind.
    @pytest.mark.parametrize(
        ("keys", "algorithms", "ranks"),
        [
            (["lora_unet_x.lora_down.weight=4,9", "lora_unet_x.lora_up.weight=9,4"], {"lora": 1}, (4,)),
            (["unet.x.lora_A.weight=8,9", "unet.x.lora_B.weight=9,8"], {"lora": 1}, (8,)),
            (["m.x.lora_A.ink.weight=8,9", "m.x.lora_B.ink.weight=9,8", "m.x.lora_B.bias=9"], {"lora": 1}, (8,)),
            (["x.lora_A=2,9", "x.lora_B=9,2"], {"lora": 1}, (2,)),
            (["x.processor.to_q_lora.down.weight=4,9", "x.processor.to_q_lora.up.weight=9,4"], {"lora": 1}, (4,)),
            (["x.to_q.lora.down.weight=4,9", "x.to_q.lora.up.weight=9,4"], {"lora": 1}, (4,)),
            (["x.lora_linear_layer.down.weight=4,9", "x.lora_linear_layer.up.weight=9,4"], {"lora": 1}, (4,)),
            (["a.lora_down.weight=4,9", "b.lora_down.weight=32,9"], {"lora": 2}, (4, 32)),
            (["a.lora_down.weight=4,9,1,1", "a.lora_up.weight=9,4,1,1"], {"lora": 1}, (4,)),
            (["a.lora_down.weight=4,9,3,3", "a.lora_up.weight=9,4,1,1"], {"locon": 1}, (4,)),
            (["a.lora_down.weight=4,9,1,1", "a.lora_mid.weight=4,4,3,3"], {"locon-mid": 1}, (4,)),
            (["a.lora_A=2,9", "a.lora_B=9,2", "a.lora_E=2,1"], {"adalora": 1}, (2,)),
            (["a.shira_weight=8", "a.shira_indices=2,8"], {"shira": 1}, ()),
            (["a.hada_w1_a=9,4", "a.hada_w1_b=4,9", "a.hada_w2_a=9,4", "a.hada_w2_b=4,9"], {"loha": 1}, (4,)),
            (["a.lokr_w1=2,2", "a.lokr_w2_a=9,4", "a.lokr_w2_b=4,9"], {"lokr": 1}, (4,)),
            (["a.lokr_w1=2,2", "a.lokr_w2=9,9"], {"lokr": 1}, ()),
            (["a.weight=9", "a.on_input="], {"ia3": 1}, ()),
            (["a.a1.weight=9,4", "a.a2.weight=4,9", "a.b1.weight=9,4", "a.b2.weight=4,9"], {"glora": 1}, (4,)),
            (["a.oft_blocks=4,8,8"], {"oft": 1}, ()),
            (["a.oft_blocks=2,4,8,8", "a.rescale=9,1"], {"boft": 1}, ()),
            (["a.lora_down.weight=4,9", "a.dora_scale=9,1"], {"dora": 1, "lora": 1}, (4,)),
            (["a.lora_A.weight=4,9", "a.lora_magnitude_vector.ink=9"], {"dora": 1, "lora": 1}, (4,)),
            (["a.diff=9,9", "a.diff_b=9"], {"full": 1}, ()),
            (["a.w_norm=9", "a.b_norm=9"], {"norm": 1}, ()),
            (["a.weight=9,9", "weight=9", "x.up.weight=2,2", "x"], {}, ()),
        ],
    )
    def test_it_is_named_by_its_suffixes_and_shapes(
        self, tmp_path: Path, keys: list[str], algorithms: dict[str, int], ranks: tuple[int, ...]
    ) -> None:
        found = described(tmp_path, *keys)
        assert (dict(found.algorithms), found.ranks) == (algorithms, ranks)


class TestAlpha:
    @pytest.mark.parametrize(
        ("dtype", "raw"),
        [
            ("F64", struct.pack("<d", 2.5)),
            ("F32", struct.pack("<f", 2.5)),
            ("F16", struct.pack("<e", 2.5)),
            ("BF16", b"\x20\x40"),  # 2.5 is 0x40200000 as float32, and bfloat16 its upper half
        ],
    )
    def test_it_is_read_from_a_tensor_of_any_float_dtype(self, tmp_path: Path, dtype: str, raw: bytes) -> None:
        header = read_header(write(tmp_path / "a.safetensors", {"x.alpha": (dtype, [], raw)}))
        assert describe(header).alphas == (2.5,)

    def test_different_ones_are_all_there_in_order(self, tmp_path: Path) -> None:
        tensors = {f"{i}.alpha": ("I32", [], struct.pack("<i", i)) for i in (8, 1, 8)}
        tensors |= {"n.alpha": ("F32", [], struct.pack("<f", float("nan"))), "big.alpha": ("F32", [90])}
        tensors |= {"odd.alpha": ("F8_E4M3", [])}
        assert describe(read_header(write(tmp_path / "a.safetensors", tensors))).alphas == (1.0, 8.0)

    def test_without_tensors_it_comes_from_the_adapter_config_then_from_kohya(self, tmp_path: Path) -> None:
        config = json.dumps({"unet.lora_alpha": 16, "text_encoder.lora_alpha": 4, "unet.r": 2})
        metadata = {"ss_network_alpha": "3", "lora_adapter_metadata": config}
        assert described(tmp_path, "x.lora_down.weight=1,1", metadata=metadata).alphas == (4.0, 16.0)
        assert described(tmp_path, "x.lora_down.weight=1,1", metadata={"ss_network_alpha": "3"}).alphas == (3.0,)
        assert described(tmp_path, "x.lora_down.weight=1,1", metadata={"ss_network_alpha": "None"}).alphas == ()

    def test_a_file_that_has_gone_since_is_no_error(self, tmp_path: Path) -> None:
        header = read_header(write(tmp_path / "a.safetensors", {"x.alpha": ("F32", [])}))
        header.path.unlink()
        assert describe(header).alphas == ()


class TestFamily:
    @pytest.mark.parametrize(
        ("metadata", "family"),
        [
            ({"ss_base_model_version": "sdxl_base_v1-0"}, "SDXL"),
            ({"ss_base_model_version": "sd_v1", "ss_v2": "False"}, "SD1"),
            ({"ss_base_model_version": "flux1"}, "Flux"),
            ({"ss_base_model_version": "hunyuan-image-2.1"}, "HunyuanImage"),
            ({"ss_v2": "True"}, "SD2"),
            ({"ss_v2": "False"}, "SD1"),
            ({"modelspec.architecture": "stable-diffusion-v1/lora"}, "SD1"),
            ({"modelspec.architecture": "stable-diffusion-v2-768-v/lora"}, "SD2"),
            ({"modelspec.architecture": "stable-diffusion-xl-v1-base/lora"}, "SDXL"),
            ({"modelspec.architecture": "stable-diffusion-3-medium/lora"}, "SD3"),
            ({"modelspec.architecture": "flux-1-dev/lora"}, "Flux"),
            ({"ss_base_model_version": "wan2.1"}, "Wan"),
            ({"modelspec.architecture": "Qwen-Image"}, "Qwen-Image"),
            ({"ss_base_model_version": "zimage"}, "Z-Image"),
            ({"ss_base_model_version": "anima"}, "Anima"),
            ({"ss_base_model_version": "something new"}, "unknown"),
            ({}, "unknown"),
        ],
    )
    def test_the_metadata_tell_it(self, tmp_path: Path, metadata: dict[str, str], family: str) -> None:
        assert described(tmp_path, "x.lora_down.weight=4,9", metadata=metadata).family == family

    @pytest.mark.parametrize(
        ("key", "family"),
        [
            ("lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k.lora_down.weight=4,768", "SD1"),
            ("lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_v.lora_down.weight=4,1024", "SD2"),
            ("unet.down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k.lora_A.weight=4,2048", "SDXL"),
            ("lora_unet_input_blocks_4_1_transformer_blocks_0_attn2_to_k.hada_w1_b=4,2048", "SDXL"),
            ("lora_unet_input_blocks_4_1_transformer_blocks_0_attn2_to_k.diff=640,2048", "SDXL"),
            ("lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_k.lora_down.weight=4,768", "unknown"),
            ("lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k.lora_up.weight=320,768", "unknown"),
            ("lora_te_text_model_encoder_layers_0_self_attn_q_proj.lora_down.weight=4,768", "SD1"),
            ("text_encoder.text_model.encoder.layers.0.self_attn.q_proj.lora_A.weight=4,1024", "SD2"),
            ("lora_te2_text_model_encoder_layers_0_self_attn_q_proj.lora_down.weight=4,1280", "SDXL"),
            ("lora_unet_double_blocks_0_img_mod_lin.lora_down.weight=4,3072", "Flux"),
            ("lora_unet_single_blocks_0_modulation_lin.lora_down.weight=4,3072", "Flux"),
            ("transformer.single_transformer_blocks.37.norm.linear.lora_A.weight=4,3072", "Flux"),
            ("lora_unet_double_blocks_0_img_attn_qkv.lora_down.weight=4,3072", "unknown"),  # Flux or Chroma
            ("transformer.single_transformer_blocks.0.attn.to_q.lora_A.weight=4,3072", "unknown"),
            ("transformer.distilled_guidance_layer.layers.0.linear_1.lora_A.weight=4,5120", "Chroma"),
            ("transformer.joint_transformer_blocks.0.attn.to_q.lora_A.weight=4,3072", "AuraFlow"),
            ("diffusion_model.double_stream_modulation_img.lin.lora_A.weight=4,6144", "Flux2"),
            (
                "transformer.context_embedder.token_refiner.refiner_blocks.0.attn.to_q.lora_A.weight=4,3584",
                "HunyuanImage",
            ),
            (
                "transformer.context_embedder.token_refiner.refiner_blocks.0.attn.to_q.lora_A.weight=4,2048",
                "HunyuanVideo1.5",
            ),
            ("lora_unet_double_blocks_0_img_mlp_fc1.lora_down.weight=4,3072", "HunyuanVideo"),
            ("lora_unet_joint_blocks_0_x_block_attn_qkv.lora_down.weight=4,1536", "SD3"),
            ("diffusion_model.blocks.0.cross_attn.k.lora_A.weight=4,5120", "Wan"),
            ("lora_unet_blocks_0_ffn_0.lora_down.weight=4,5120", "Wan"),
            ("transformer.blocks.0.ffn.net.0.proj.lora_A.weight=4,5120", "Wan"),
            ("lora_unet_blocks_0_cross_attn_q_proj.lora_down.weight=4,2048", "unknown"),  # Cosmos or Anima
            ("lora_unet_llm_adapter_blocks_0_cross_attn_q_proj.lora_down.weight=4,1024", "Anima"),
            ("lora_te_layers_0_self_attn_q_proj.lora_down.weight=4,1024", "unknown"),  # a language model
            ("lora_prior_unet_down_blocks_0_2_attention_attn_to_q.lora_down.weight=4,2048", "Cascade"),
            ("diffusion_model.double_stream_blocks.0.block.attn1.to_q.lora_A.weight=4,2560", "HiDream"),
            ("transformer_blocks.0.img_mod.1.lora_down.weight=4,3072", "Qwen-Image"),
            ("transformer.transformer_blocks.0.attn.add_q_proj.lora_A.weight=4,1536", "SD3"),
            ("transformer.transformer_blocks.0.attn.add_q_proj.lora_A.weight=4,3072", "unknown"),  # Qwen-Image, Flux
            ("diffusion_model.layers.0.attention.to_q.lora_A.weight=4,3840", "Z-Image"),
            ("lora_unet_layers_0_attention_qkv.lora_down.weight=4,2304", "Lumina2"),
            ("conditional_transformer.layers.0.attention.qkv.lora_A.weight=4,4608", "Ideogram4"),
            ("base_model.model.blocks.0.attn1.Wqkv.lora_A.weight=4,1408", "HunyuanDiT"),
            ("blocks.0.attn.qkv_x.lora_A=4,3072", "Mochi"),
            ("diffusion_model.patchify_proj.lora_A.weight=4,128", "LTX"),
            (
                "diffusion_model.transformer_blocks.0.attn2.to_k.lora_A.weight=4,2048",
                "unknown",
            ),  # LTX is as wide as SDXL
            ("diffusion_model.blocks.0.attn.wq.lora_A.weight=4,6144", "Krea2"),
            ("diffusion_model.token_refiner.blocks.0.attn.out_proj.lora_A.weight=4,7168", "unknown"),
        ],
    )
    def test_keys_and_shapes_tell_it(self, tmp_path: Path, key: str, family: str) -> None:
        assert described(tmp_path, key).family == family

    def test_the_metadata_are_believed_before_the_keys(self, tmp_path: Path) -> None:
        key = "lora_unet_double_blocks_0_img_attn_qkv.lora_down.weight=4,3072"
        assert described(tmp_path, key, metadata={"ss_base_model_version": "chroma"}).family == "Chroma"

    @pytest.mark.parametrize(("layer", "family"), [("img_mod_lin", "Flux"), ("img_attn_qkv", "unknown")])
    def test_a_flux_file_of_an_old_trainer_is_not_taken_for_sd1(self, tmp_path: Path, layer: str, family: str) -> None:
        key = f"lora_unet_double_blocks_0_{layer}.lora_down.weight=4,3072"
        assert described(tmp_path, key, metadata={"ss_v2": "False"}).family == family


class TestWords:
    @pytest.mark.parametrize(
        ("text", "noted"),
        [
            ('{"split_qkv": "True"}', True),
            ('{"split_qkv": true}', True),
            ('{"split_qkv": "False"}', False),
            ("[", False),
        ],
    )
    def test_a_file_of_split_qkv_is_noted(self, text: str, noted: bool, tmp_path: Path) -> None:
        found = described(tmp_path, "x=1", metadata={"ss_network_args": text})
        assert [note.partition(":")[0] for note in found.notes] == ["trained with split_qkv"] * noted

    def test_the_trigger_phrase_leads_and_frequent_tags_follow(self, tmp_path: Path) -> None:
        tags = {"10_a": {"ink wash": 5, "tree ": 3, "1girl": 1}, "5_b": {"1girl": 9}, "c": [], "d": {"bad": "x"}}
        metadata = {"modelspec.trigger_phrase": "inkstyle, ink wash", "ss_tag_frequency": json.dumps(tags)}
        found = described(tmp_path, "x=1", metadata=metadata)
        assert found.trigger_words == ("inkstyle", "ink wash", "1girl", "tree")

    @pytest.mark.parametrize("text", ["", "{", "[]", "3", "[" * 200_000, '{"a": {"b": NaN}}', '{"a": {"b": 1e999}}'])
    def test_broken_counts_are_no_error(self, tmp_path: Path, text: str) -> None:
        assert described(tmp_path, "x=1", metadata={"ss_tag_frequency": text}).trigger_words == ()

    def test_the_title_is_the_modelspecs_else_the_output_name(self, tmp_path: Path) -> None:
        metadata = {"modelspec.title": "Ink Wash", "ss_output_name": "ink"}
        found = described(tmp_path, "x=1", metadata=metadata)
        assert (found.title, found.alias) == ("Ink Wash", "ink")
        assert described(tmp_path, "x=1", metadata={"ss_output_name": "ink"}).title == "ink"
        found = described(tmp_path, "x=1")
        assert (found.title, found.alias) == ("", None)

    def test_keys_are_counted_by_the_component_that_their_prefix_names(self, tmp_path: Path) -> None:
        keys = [
            *("lora_unet_a.alpha", "unet.a.lora_A", "diffusion_model.input_blocks.0.diff"),
            *("lora_te_a.alpha", "lora_te1_a.alpha", "text_encoder.a.lora_A"),
            *("lora_te2_a.alpha", "text_encoder_2.a.lora_A"),
            *(
                "transformer.a.lora_A",
                "diffusion_model.double_blocks.0.lora_A",
                "base_model.model.transformer.a.lora_A",
            ),
            *("lora_te3_a.alpha", "a.alpha"),
        ]
        found = described(tmp_path, *keys)
        assert found.components == {
            "text_encoder": 3,
            "transformer": 3,
            "unet": 3,
            "text_encoder_2": 2,
            "other": 1,
            "text_encoder_3": 1,
        }
        assert found.size == (tmp_path / "a.safetensors").stat().st_size
