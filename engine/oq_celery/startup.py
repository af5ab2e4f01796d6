"""Spares the start of the engine a fifth of its CPU: numba's code is loaded, the means to compile with it are not.

The engine has some seventy functions compiled ahead and kept in numba's cache. Loading one, numba links its machine
code, and then parses the LLVM code of the same function, which only a later compilation of another function that
calls it would need; hardly any task compiles. Here that waits until somebody asks for it.
"""

from __future__ import annotations

import struct
from typing import Any

NUMBA = "0.61.2"  # whose inner workings these are; with another version everything is as upstream has it
# ELF, see elf(5): of the header of a file, of a section, and of a symbol.
_FILE_HEADER = struct.Struct("<16sHHIQQQIHHHHHH")
_SECTION_HEADER = struct.Struct("<IIQQQQIIQQ")
_SYMBOL = struct.Struct("<IBBHQQ")
_SYMBOL_TABLE = 2
_GLOBAL, _WEAK = 1, 2


def install(codegen: Any) -> None:
    """Change `numba.core.codegen`, when it has been imported and nothing is loaded yet."""
    import numba

    if numba.__version__ != NUMBA:
        return
    library, engine = codegen.JITCodeLibrary, codegen.JitEngine
    upstream_unserialize = codegen.CPUCodeLibrary._unserialize.__func__
    upstream_is_defined = engine.is_symbol_defined
    waiting: list[Any] = []  # libraries whose LLVM code has not been parsed

    def unserialize(cls: Any, codegen_: Any, state: Any) -> Any:
        name, kind, data = state
        if kind != "object":
            return upstream_unserialize(cls, codegen_, state)
        machine_code, llvm_code = data
        self = codegen_.create_library(name)
        self.enable_object_caching()
        self._set_compiled_object(machine_code)
        self._finalize_final_module()
        codegen_._engine._defined_symbols |= defined_symbols(machine_code)
        self._llvm_code = llvm_code
        waiting.append(self)
        return self

    def get_shared_module(self: Any) -> Any:
        llvm_code = vars(self).pop("_llvm_code", None)
        if llvm_code is not None:
            waiting.remove(self)
            module = vars(self)["_shared_module"] = codegen.ll.parse_bitcode(llvm_code)
            self._codegen._engine._load_defined_symbols(module)
        return vars(self).get("_shared_module")

    def set_shared_module(self: Any, module: Any) -> None:
        vars(self)["_shared_module"] = module

    def is_symbol_defined(self: Any, name: str) -> bool:
        if not upstream_is_defined(self, name):
            # LLVM code has the names of its symbols as they are.
            for one in [one for one in waiting if name.encode() in one._llvm_code]:
                _ = one._shared_module
        return bool(upstream_is_defined(self, name))

    library._unserialize = classmethod(unserialize)
    library._shared_module = property(get_shared_module, set_shared_module)
    engine.is_symbol_defined = is_symbol_defined


def defined_symbols(machine_code: bytes) -> set[str]:
    """The global symbols that an ELF object of 64 bits defines."""
    header = _FILE_HEADER.unpack_from(machine_code)
    offset, size, count = header[6], header[11], header[12]
    sections = [_SECTION_HEADER.unpack_from(machine_code, offset + size * number) for number in range(count)]
    names = set()
    for section in sections:
        if section[1] != _SYMBOL_TABLE:
            continue
        strings = sections[section[6]][4]
        for place in range(section[4], section[4] + section[5], _SYMBOL.size):
            name, info, _, where, _, _ = _SYMBOL.unpack_from(machine_code, place)
            if where and info >> 4 in (_GLOBAL, _WEAK):
                begin = strings + name
                names.add(machine_code[begin : machine_code.index(b"\0", begin)].decode())
    return names
