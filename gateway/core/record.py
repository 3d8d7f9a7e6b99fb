"""`@record`: a frozen record. The type checker holds everybody to that; nothing is paid for it at run time.

`dataclass(frozen=True)` writes each field through `object.__setattr__`: measured with six fields, 2.8 µs to make one against 0.35
(CPython 3.11). A call makes some forty records.
"""

from dataclasses import dataclass, field
from typing import TypeVar, dataclass_transform

T = TypeVar("T")


@dataclass_transform(frozen_default=True, field_specifiers=(field,))
def record(cls: type[T]) -> type[T]:
    """Slots, an `__init__`, equality and a hash of the fields. To change a field is an error of types: use `dataclasses.replace`."""
    return dataclass(slots=True, unsafe_hash=True)(cls)
