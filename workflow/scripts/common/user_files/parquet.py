"""The rows of a user's Parquet file; values that are no texts, as text. Errors are ValueErrors."""

from collections import Counter
from decimal import Decimal


def text_of(value):
    """A value as text, lists and fields within it, too; None stays."""
    if isinstance(value, dict):
        return {text_of(key): text_of(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [text_of(part) for part in value]
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, bytes):
        return value.decode()
    if value is None or value != value:
        return None  # NaN is nothing, as pandas has it
    return f"{value:f}" if isinstance(value, Decimal) else str(value)  # not 0E-7


def text_in(scalar, name):
    """The text of one of Arrow's values, in the column of this name."""
    try:
        return text_of(scalar.as_py(maps_as_pydicts="strict"))
    except UnicodeDecodeError as error:
        byte = f"byte {error.start + 1} is {error.object[error.start]:#x}"
        raise ValueError(f"column {name} holds bytes that are no UTF-8 ({byte}): write text there") from error
    except (KeyError, ValueError, OverflowError) as error:  # a map's key twice; a date that Python does not know
        raise ValueError(f"column {name} can't be read: {error.args[0]}") from error


def with_floats(type, floats):
    """An Arrow type with others in place of float32, in fields and lists, too."""
    from pyarrow import list_, struct, types

    if types.is_struct(type):
        return struct([field.with_type(with_floats(field.type, floats)) for field in type])
    if types.is_list(type):
        return list_(type.value_field.with_type(with_floats(type.value_type, floats)))
    return floats if types.is_float32(type) else type


def exact(column):
    """float32 as it is printed: 0.1, not 0.10000000149011612."""
    from pyarrow import float64, string

    as_text, as_double = (with_floats(column.type, floats) for floats in (string(), float64()))
    return column if as_text == column.type else column.cast(as_text).cast(as_double)


def named_twice(names):
    """One that stands twice among columns' names, or None. Those without a name nobody asks for."""
    times = Counter(names)
    return next((name for name in names if name and times[name] > 1), None)


def read_parquet(file, names=None):
    """names: of columns, or of fields in them, that alone are read, where the file has them: others, as of pictures,
    may be no text."""
    import pyarrow.parquet

    number = 0
    try:
        with pyarrow.parquet.ParquetFile(file) as parquet:
            there = parquet.schema_arrow.names
            if twice := named_twice(there):
                raise ValueError(f"{file}: has two columns {twice}: name one anew")
            asked = {name if name in there else name.split(".")[0] for name in names or there}
            read = sorted(asked) if asked <= {*there} else None
            for batch in parquet.iter_batches(batch_size=1024, columns=read):  # its default is 64 times as much
                for values in zip(*map(exact, batch.columns)):
                    number += 1
                    try:
                        row = {name: text_in(value, name) for name, value in zip(batch.schema.names, values)}
                    except ValueError as error:
                        raise ValueError(f"{file}, row {number}: {error}") from error
                    yield f"row {number}", None, row
    except (pyarrow.ArrowException, OSError) as error:
        if getattr(error, "errno", None):  # not there, or not for this user
            raise
        problem = " ".join(str(error).split()).rstrip(".")
        raise ValueError(f"{file}: can't be read as Parquet: {problem}") from error
