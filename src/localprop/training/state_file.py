"""A file of nested values that proves itself: safetensors, with a manifest in its metadata.

The manifest holds everything that is no tensor, and of each tensor a hash, its dtype, shape and
strides. It has a hash itself. So a file is read as it was written, or what is damaged is named.

safetensors' own writer makes temporary files of names that we could not clear, so the few lines
that write the format stand here: the length of the header, the header, the tensors one after the
other. Its reader checks that the header fits the file before anything is read.

Source: https://github.com/huggingface/safetensors#format
"""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Iterable, Mapping
from hashlib import blake2b
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor

import localprop
from localprop.errors import BadInput
from localprop.training.plain_values import Tensors, decode, encode
from localprop.writing.files import replace_file

VERSION = 2
_ZIP = b"PK"  # how files of torch.save begin
_MAX_NAMES = 8  # damaged entries that are named

# safetensors' names of dtypes. A tensor of another dtype stands as its bytes.
_DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


def write_state(path: Path, values: Mapping[str, Any]) -> None:
    """Write values to a file. A failure leaves the old file unchanged.

    Raises:
        BadInput: a value that `encode` does not know.
        RunFailed: the file cannot be written.

    Example:
        >>> write_state(Path("a.safetensors"), {"epoch": 3, "mean": torch.ones(2)})
        >>> StateFile(Path("a.safetensors")).read()
        {'epoch': 3, 'mean': tensor([1., 1.])}
    """
    tensors: Tensors = {}
    manifest: dict[str, Any] = {"values": encode(dict(values), tensors)}
    # The widest first, so that each tensor begins at a multiple of its width.
    names = sorted(tensors, key=lambda name: (-tensors[name].itemsize, name))
    manifest["tensors"] = {name: _describe(tensors[name]) for name in names}
    manifest["versions"] = _list_versions()
    text = json.dumps(manifest, allow_nan=False, separators=(",", ":"))
    metadata = {
        "format": "localprop checkpoint",
        "version": str(VERSION),
        "manifest": text,
        "hash": _hash(text.encode()),
    }
    with replace_file(path) as file:
        _write_safetensors(file, {name: tensors[name] for name in names}, metadata)


class Damaged(BadInput):
    """A file does not hold what was written."""


class StateFile:
    """A file of `write_state`. Opening it checks its form and its manifest, and reads no tensor.

    Args:
        path: the file.

    Attributes:
        path: the file.
        versions: those of localprop, torch and Python that wrote it.
        about: the values, whose tensors are not checked yet, and lie in the file until they are
            used. Their shapes and dtypes, and all other values, are right; their strides are not.

    Raises:
        Damaged: it is damaged, or no such file at all.
        BadInput: there is no such file, or it is of another version or origin.

    Example:
        >>> write_state(Path("a.safetensors"), {"epoch": 3})
        >>> StateFile(Path("a.safetensors")).about["epoch"]
        3
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        if not os.path.isfile(path):
            raise BadInput(f"There is no file {path}: check the path.")
        metadata: dict[str, str] = {}
        try:
            with path.open("rb") as file:
                is_zip = file.read(2) == _ZIP
            if not is_zip:
                reader: Any = safe_open
                self._file = reader(path, framework="pt")
                metadata = self._file.metadata() or {}
        except Exception as error:  # the reader can raise anything on a foreign file
            raise self._damaged(_first_line_of(error)) from error
        self._manifest = self._read_manifest(metadata, is_zip=is_zip)
        self.versions: dict[str, str] = self._manifest["versions"]
        self._check_header()
        self.about = self._decode(self._map)

    def _read_manifest(self, metadata: Mapping[str, str], *, is_zip: bool) -> dict[str, Any]:
        if is_zip:
            raise BadInput(
                f"{self.path} is a file of torch.save, as localprop wrote before its checkpoints "
                "had hashes: use the localprop that wrote it."
            )
        if not {"format", "version", "manifest", "hash"} <= metadata.keys():
            raise BadInput(
                f"{self.path} is no checkpoint of localprop: name a file of lp.save, or of a run."
            )
        if metadata["version"] != str(VERSION):
            raise BadInput(
                f"{self.path} has version {metadata['version'][:20]!r}, but this localprop reads "
                f"version {VERSION}: use the localprop that wrote it."
            )
        text = metadata["manifest"]
        if _hash(text.encode("utf-8", "surrogatepass")) != metadata["hash"]:
            raise self._damaged("its manifest does not have its hash")
        manifest: dict[str, Any] = json.loads(text)
        return manifest

    def _check_header(self) -> None:
        """Compare the names, dtypes and shapes of the header with those of the manifest."""
        described = self._manifest["tensors"]
        if {*self._file.keys()} != described.keys():
            raise self._damaged("the names in its header are not those of its manifest")
        self._refuse_damaged(name for name in described if not self._fits(name))

    def _fits(self, name: str) -> bool:
        described, header = self._manifest["tensors"][name], self._file.get_slice(name)
        return (header.get_dtype(), header.get_shape()) == _store_as(
            _dtype_of(described["dtype"]), described["shape"]
        )

    @property
    def hashes(self) -> dict[str, str]:
        """The hash of each tensor, by the name of its place."""
        return {name: each["hash"] for name, each in self._manifest["tensors"].items()}

    def read(self) -> dict[str, Any]:
        """The values, after each tensor has been compared with its hash.

        Raises:
            Damaged: names the tensors that are damaged.
        """
        described = self._manifest["tensors"]
        self._refuse_damaged(
            name for name in described if _hash_tensor(self._map(name)) != described[name]["hash"]
        )
        return self._decode(self._restore)

    def _decode(self, find_tensor: Any) -> dict[str, Any]:
        found: Tensors = {}

        def find_once(name: str) -> Tensor:
            if name not in found:
                found[name] = find_tensor(name)
            return found[name]

        values: dict[str, Any] = decode(self._manifest["values"], find_once)
        return values

    def _map(self, name: str) -> Tensor:
        described = self._manifest["tensors"][name]
        stored: Tensor = self._file.get_tensor(name)
        return stored.view(_dtype_of(described["dtype"])).view(described["shape"])

    def _restore(self, name: str) -> Tensor:
        described, tensor = self._manifest["tensors"][name], self._map(name)
        if "stride" not in described:
            return tensor
        restored = torch.empty_strided(tensor.shape, described["stride"], dtype=tensor.dtype)
        return restored.copy_(tensor)

    def _refuse_damaged(self, names: Iterable[str]) -> None:
        names = [*names]
        if names:
            more = f" and {len(names) - _MAX_NAMES} more" if len(names) > _MAX_NAMES else ""
            raise Damaged(
                f"{self.path} is damaged in {', '.join(names[:_MAX_NAMES])}{more}, whose bytes do "
                "not have the hash that they were written with: use another checkpoint."
            )

    def _damaged(self, reason: str) -> Damaged:
        return Damaged(
            f"{self.path} cannot be read as a checkpoint ({reason}): it is damaged, or not a file "
            "of localprop."
        )


# --- tensors --------------------------------------------------------------------------------------


def _describe(tensor: Tensor) -> dict[str, Any]:
    described: dict[str, Any] = {
        "dtype": str(tensor.dtype).removeprefix("torch."),
        "shape": [*tensor.shape],
        "hash": _hash_tensor(tensor),
    }
    # The strides of a dense copy, where they are not the usual ones. Those of dimensions of size 1
    # count, too: convolutions choose their kernels by them.
    stride = torch.empty_like(tensor, device="meta").stride()
    if stride != torch.empty(tensor.shape, device="meta").stride():
        described["stride"] = [*stride]
    return described


def _dtype_of(name: str) -> torch.dtype:
    dtype: torch.dtype = getattr(torch, name)
    return dtype


def _store_as(dtype: torch.dtype, shape: list[int]) -> tuple[str, list[int]]:
    """The dtype and shape in the file of a tensor of a dtype and shape."""
    if dtype in _DTYPES:
        return _DTYPES[dtype], shape
    return "U8", [int(np.prod(shape, dtype=np.int64)) * dtype.itemsize]


def _bytes_of(tensor: Tensor) -> Any:
    """The bytes of a tensor in the order of its indices, without a copy if they lie so already."""
    plain = tensor.resolve_conj().resolve_neg().contiguous().reshape(-1)
    return plain.view(torch.uint8).numpy().data


def _hash_tensor(tensor: Tensor) -> str:
    return _hash(_bytes_of(tensor))


def _hash(content: Any) -> str:
    return blake2b(content, digest_size=16).hexdigest()


def _write_safetensors(file: BinaryIO, tensors: Tensors, metadata: Mapping[str, str]) -> None:
    header: dict[str, Any] = {"__metadata__": metadata}
    end = 0
    for name, tensor in tensors.items():
        start, end = end, end + tensor.nbytes
        dtype, shape = _store_as(tensor.dtype, [*tensor.shape])
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    file.write(len(text).to_bytes(8, "little"))
    file.write(text)
    for tensor in tensors.values():
        file.write(_bytes_of(tensor))


# --- texts ----------------------------------------------------------------------------------------


def _list_versions() -> dict[str, str]:
    return {
        "localprop": localprop.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def _first_line_of(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
