"""A multipart form, read as it arrives: bytes in, fields and the bytes of one file out. Knows no database."""

from collections.abc import Collection

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from jobs.contract import limits
from jobs.errors import BadRequest, TooLarge, UnsupportedType

FILE = "file"
EXPIRY = {"anchor": "expires_after[anchor]", "seconds": "expires_after[seconds]"}
FIELDS = frozenset({"purpose", *EXPIRY.values()})


class Form:
    """Fields in any order, and at most one file, of which only what `take` has not fetched is held."""

    def __init__(
        self, content_type: str, *, size_max: int, file_field: str = FILE, fields: Collection[str] = FIELDS
    ) -> None:
        """UnsupportedType unless `content_type` is a form's. `size_max` is the file's, in bytes.

        The file stands in `file_field`; beside it there may be `fields`.
        """
        self.fields: dict[str, str] = {}
        self.has_file = False
        self.filename: str | None = None
        self.file_size = 0
        self.pending = bytearray()
        self.file_field = file_field
        self._known = fields
        self._size_max = size_max
        self._is_complete = False
        self._header_name, self._header_value = bytearray(), bytearray()
        self._disposition = b""
        self._name = ""
        self._value = bytearray()
        self._parser = self._open(content_type)

    def feed(self, content: bytes) -> None:
        """Read on. BadRequest for what is no such form, TooLarge as soon as the file is."""
        try:
            self._parser.write(content)
        except FormParserError as error:
            raise _malformed(str(error)) from None

    def take(self, size: int) -> bytearray:
        """The next `size` bytes of the file; fewer where no more have arrived."""
        taken, self.pending = self.pending, self.pending[size:]
        del taken[size:]
        return taken

    def finish(self) -> None:
        """BadRequest if the body ended before the form did."""
        if not self._is_complete:
            raise _malformed("it ends before its last boundary")

    def _open(self, content_type: str) -> MultipartParser:
        kind, options = parse_options_header(content_type)
        if kind != b"multipart/form-data" or not options.get(b"boundary"):
            raise UnsupportedType(
                f"Unsupported content type: '{content_type}'. Expected 'multipart/form-data' with a boundary."
            )
        try:
            return MultipartParser(
                options[b"boundary"],
                {
                    "on_part_begin": self._on_part_begin,
                    "on_header_field": self._on_header_field,
                    "on_header_value": self._on_header_value,
                    "on_header_end": self._on_header_end,
                    "on_headers_finished": self._on_headers_finished,
                    "on_part_data": self._on_part_data,
                    "on_part_end": self._on_part_end,
                    "on_end": self._on_end,
                },
            )
        except FormParserError as error:
            raise _malformed(str(error)) from None

    def _on_part_begin(self) -> None:
        self._disposition = b""
        self._value.clear()

    def _on_header_field(self, content: bytes, start: int, end: int) -> None:
        self._header_name += content[start:end]

    def _on_header_value(self, content: bytes, start: int, end: int) -> None:
        self._header_value += content[start:end]

    def _on_header_end(self) -> None:
        if self._header_name.lower() == b"content-disposition":
            self._disposition = bytes(self._header_value)
        self._header_name.clear()
        self._header_value.clear()

    def _on_headers_finished(self) -> None:
        _, options = parse_options_header(self._disposition)
        if b"name" not in options:
            raise _malformed("a part has no name")
        self._name = options[b"name"].decode(errors="replace")
        if self._name == self.file_field and not self.has_file:
            self.has_file = True
            self.filename = _filename(options.get(b"filename", b""))
        elif self._name in self.fields or self._name == self.file_field:
            raise BadRequest(f"Duplicate parameter: '{self._name}'.", code="invalid_value", param=self._name)
        elif self._name not in self._known:
            shown = self._name[:100]
            raise BadRequest(f"Unknown parameter: '{shown}'.", code="unknown_parameter", param=shown)

    def _on_part_data(self, content: bytes, start: int, end: int) -> None:
        if self._name == self.file_field:
            self.file_size += end - start
            if self.file_size > self._size_max:
                raise TooLarge(f"The file is larger than {self._size_max} bytes, the most a file may have.")
            self.pending += memoryview(content)[start:end]
            return
        self._value += content[start:end]
        if len(self._value) > limits.FORM_FIELD_SIZE_MAX:
            raise TooLarge(
                f"The value of '{self._name}' is larger than {limits.FORM_FIELD_SIZE_MAX} bytes.", param=self._name
            )

    def _on_part_end(self) -> None:
        if self._name != self.file_field:
            self.fields[self._name] = self._value.decode(errors="replace")

    def _on_end(self) -> None:
        self._is_complete = True


def _filename(raw: bytes) -> str | None:
    name = raw.decode(errors="replace")
    if "\0" in name:
        raise BadRequest("Invalid 'filename': it must not contain the character U+0000.", code="invalid_value")
    if len(name) > limits.FILENAME_CHARACTERS_MAX:
        raise BadRequest(
            f"Invalid 'filename': string too long. Expected a string with maximum length "
            f"{limits.FILENAME_CHARACTERS_MAX}, but got a string with length {len(name)} instead.",
            code="string_above_max_length",
        )
    return name or None


def _malformed(reason: str) -> BadRequest:
    return BadRequest(f"The multipart form cannot be read: {reason}.")
