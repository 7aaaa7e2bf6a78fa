"""A library of CPU kernels for another processor or system, which runs under an emulator in a process of its own.

Each call sends the structure of arguments and the memory that it points to, and copies the results back, so that the
tests of the kernels run unchanged. ``tools/foreign_kernels.py`` compiles the library and names the command.
"""

from __future__ import annotations

import ctypes
import os
import shlex
import struct
import subprocess
from typing import Any

import torch

VARIABLE, VARIANT_VARIABLE = "S3DNERF_FOREIGN", "S3DNERF_FOREIGN_VARIANT"
"""The command that serves the kernels, and the set of kernels that it must choose."""


class ForeignKernels:
    """The process that serves the kernels."""

    def __init__(self, command: str, variant: str) -> None:
        self.process = subprocess.Popen(shlex.split(command), stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self.variant = self._read(struct.unpack("<I", self._read(4))[0]).decode()
        assert self.variant == variant
        self.blocks: dict[int, int] = {}
        """Size of each block of memory whose address was asked for, by that address."""
        self.calls = 0

    def note_address(self, tensor: torch.Tensor, read: Any) -> int:
        """Return the address of a tensor's data, as ``read(tensor)`` does, and remember its block of memory."""
        storage = tensor.untyped_storage()
        start, size = storage.data_ptr(), storage.nbytes()
        if size:
            # Memory that was freed may have been given out again, in other blocks.
            overlapping = [at for at, length in self.blocks.items() if at < start + size and start < at + length]
            for at in overlapping:
                del self.blocks[at]
            self.blocks[start] = size
        return read(tensor)

    def call(self, prefix: str, operation: str, arguments: ctypes.Structure) -> int:
        """Run one kernel and return its code."""
        offsets = list_pointers(type(arguments))
        content = bytes(arguments)
        addresses = {struct.unpack_from("<Q", content, offset)[0] for offset in offsets} - {0}
        blocks = sorted({self._find_block(address) for address in addresses})
        name = f"{prefix}_{operation}".encode()
        message = [_with_size(name), _with_size(content)]
        message += [struct.pack("<I", len(offsets)), struct.pack(f"<{len(offsets)}I", *offsets)]
        message += [struct.pack("<iI", torch.get_num_threads(), len(blocks))]
        for address, size in blocks:
            message += [struct.pack("<QQ", address, size), ctypes.string_at(address, size)]
        self.process.stdin.write(b"".join(message))
        self.process.stdin.flush()
        (code,) = struct.unpack("<i", self._read(4))
        for address, size in blocks:
            ctypes.memmove(address, self._read(size), size)
        self.calls += 1
        return code

    def close(self) -> None:
        """End the process."""
        self.process.stdin.close()
        self.process.stdout.close()
        self.process.wait(timeout=60)

    def _find_block(self, address: int) -> tuple[int, int]:
        return next((start, size) for start, size in self.blocks.items() if start <= address < start + size)

    def _read(self, size: int) -> bytes:
        content = self.process.stdout.read(size)
        if len(content) < size:
            raise RuntimeError(f"the emulated process ended with the code {self.process.wait(timeout=60)}")
        return content


def list_pointers(kind: Any, start: int = 0) -> list[int]:
    """Return the offsets of all pointers in a structure."""
    if kind is ctypes.c_void_p:
        return [start]
    if issubclass(kind, ctypes.Array):
        size = ctypes.sizeof(kind._type_)
        return [place for i in range(kind._length_) for place in list_pointers(kind._type_, start + i * size)]
    if issubclass(kind, ctypes.Structure):
        fields = [(getattr(kind, name).offset, inner) for name, inner, *_ in kind._fields_]
        return [place for offset, inner in fields for place in list_pointers(inner, start + offset)]
    return []


def _with_size(content: bytes) -> bytes:
    return struct.pack("<I", len(content)) + content


def start_foreign_kernels() -> ForeignKernels:
    """Start the process that the environment names."""
    return ForeignKernels(os.environ[VARIABLE], os.environ[VARIANT_VARIABLE])
