"""The structures of Parquet's metadata, as far as readers act on them, by their Thrift numbers.

From the format's own definition, https://github.com/apache/parquet-format. Numbers that are not
here are passed over; one that is here must have the type it has here.
"""

from __future__ import annotations

from typing import Final

from ptmech.storage.thrift import (
    ANY_STRUCT,
    BINARY,
    BOOL,
    I8,
    I16,
    I32,
    I64,
    ListOf,
    Span,
    Struct,
)

_STATISTICS: Final = Struct(
    {
        1: ("max", BINARY),
        2: ("min", BINARY),
        3: ("null_count", I64),
        4: ("distinct_count", I64),
        5: ("max_value", BINARY),
        6: ("min_value", BINARY),
        7: ("is_max_value_exact", BOOL),
        8: ("is_min_value_exact", BOOL),
    }
)
_TIME: Final = Struct({1: ("is_adjusted_to_utc", BOOL), 2: ("unit", ANY_STRUCT)})
_LOGICAL_TYPE: Final = Struct(
    {
        5: ("decimal", Struct({1: ("scale", I32), 2: ("precision", I32)})),
        7: ("time", _TIME),
        8: ("timestamp", _TIME),
        10: ("integer", Struct({1: ("bit_width", I8), 2: ("is_signed", BOOL)})),
        3: ("list", ANY_STRUCT),
        **{kind: ("simple", ANY_STRUCT) for kind in (1, 2, 4, 6, 11, 12, 13, 14, 15)},
    }
)
_SCHEMA_ELEMENT: Final = Struct(
    {
        1: ("type", I32),
        2: ("type_length", I32),
        3: ("repetition", I32),
        4: ("name", BINARY),
        5: ("num_children", I32),
        6: ("converted_type", I32),
        7: ("scale", I32),
        8: ("precision", I32),
        9: ("field_id", I32),
        10: ("logical_type", _LOGICAL_TYPE),
    }
)
_KEY_VALUE: Final = Struct({1: ("key", BINARY), 2: ("value", BINARY)})
_COLUMN: Final = Struct(
    {
        1: ("type", I32),
        2: ("encodings", ListOf(I32)),
        3: ("path", ListOf(BINARY)),
        4: ("codec", I32),
        5: ("num_values", I64),
        6: ("total_uncompressed_size", I64),
        7: ("total_compressed_size", I64),
        8: ("key_value_metadata", ListOf(_KEY_VALUE)),
        9: ("data_page_offset", I64),
        10: ("index_page_offset", I64),
        11: ("dictionary_page_offset", I64),
        12: ("statistics", _STATISTICS),
        13: (
            "encoding_stats",
            ListOf(Struct({1: ("page_type", I32), 2: ("encoding", I32), 3: ("count", I32)})),
        ),
        14: ("bloom_filter_offset", I64),
        15: ("bloom_filter_length", I32),
    }
)
_CHUNK: Final = Struct(
    {
        1: ("file_path", BINARY),
        2: ("file_offset", I64),
        3: ("column", _COLUMN),
        4: ("offset_index_offset", I64),
        5: ("offset_index_length", I32),
        6: ("column_index_offset", I64),
        7: ("column_index_length", I32),
        8: ("encryption", ANY_STRUCT),
        9: ("encrypted_metadata", BINARY),
    }
)
_ROW_GROUP: Final = Struct(
    {
        1: ("chunks", ListOf(_CHUNK)),
        2: ("total_byte_size", I64),
        3: ("num_rows", I64),
        4: (
            "sorting_columns",
            ListOf(Struct({1: ("column", I32), 2: ("descending", BOOL), 3: ("nulls_first", BOOL)})),
        ),
        5: ("file_offset", I64),
        6: ("total_compressed_size", I64),
        7: ("ordinal", I16),
    }
)
FILE: Final = Struct(
    {
        1: ("version", I32),
        2: ("schema", ListOf(_SCHEMA_ELEMENT)),
        3: ("num_rows", I64),
        4: ("row_groups", ListOf(_ROW_GROUP)),
        5: ("key_value_metadata", Span()),
        6: ("created_by", BINARY),
        7: ("column_orders", ListOf(ANY_STRUCT)),
        8: ("encryption", ANY_STRUCT),
        9: ("footer_key", BINARY),
    }
)
"""The footer: what the file holds, and where."""
PAGE: Final = Struct(
    {
        1: ("type", I32),
        2: ("uncompressed_size", I32),
        3: ("compressed_size", I32),
        4: ("crc", I32),
        5: (
            "data",
            Struct(
                {
                    1: ("num_values", I32),
                    2: ("encoding", I32),
                    3: ("definition_encoding", I32),
                    4: ("repetition_encoding", I32),
                    5: ("statistics", _STATISTICS),
                }
            ),
        ),
        6: ("index", ANY_STRUCT),
        7: (
            "dictionary",
            Struct({1: ("num_values", I32), 2: ("encoding", I32), 3: ("is_sorted", BOOL)}),
        ),
        8: (
            "data_v2",
            Struct(
                {
                    1: ("num_values", I32),
                    2: ("num_nulls", I32),
                    3: ("num_rows", I32),
                    4: ("encoding", I32),
                    5: ("definition_bytes", I32),
                    6: ("repetition_bytes", I32),
                    7: ("is_compressed", BOOL),
                    8: ("statistics", _STATISTICS),
                }
            ),
        ),
    }
)
"""What stands before each page."""
