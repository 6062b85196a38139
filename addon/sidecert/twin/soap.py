"""The SOAP integration: SOAP 1.1 and 1.2, faults, and the WSDL.

An envelope is read in one pass that keeps nothing but where the payload lies in the text, so the echo is
the caller's own text, prefixes and all. A document type declaration is refused (SOAP 1.1, 3; SOAP 1.2
part 1, 5), and with it every entity trick.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from email.message import Message
from importlib import resources
from xml.parsers import expat
from xml.sax.saxutils import escape, quoteattr

from sidecert.twin.http import Answer, Request, fault

NAMESPACE = "urn:sidecert:twin"
START_TAG = re.compile(rb"""(<[^\s/>]+)(?:[^>"']|"[^"]*"|'[^']*')*>""")


@dataclass(frozen=True, slots=True)
class Version:
    """One SOAP version; `wrong` is its fault code for a message that the caller got wrong."""

    envelope: str
    content_type: str
    wrong: str
    wrong_status: int


V11 = Version("http://schemas.xmlsoap.org/soap/envelope/", "text/xml", "Client", 500)
V12 = Version("http://www.w3.org/2003/05/soap-envelope", "application/soap+xml", "Sender", 400)


class SoapError(Exception):
    """A message that can't be served; `code` is a fault code without its prefix, None for a wrong message."""

    def __init__(self, text: str, code: str | None = None) -> None:
        super().__init__(text)
        self.code = code


def run(request: Request, user: str | None, operation: str) -> Answer:
    """Run the integration `operation` as `user`; the answer holds the user and the payload as it came."""
    content = Message()
    content["content-type"] = request.header("content-type") or ""
    version = {each.content_type: each for each in (V11, V12)}.get(content.get_content_type())
    if version is None or request.header("content-type") is None:
        return fault(415, "a SOAP message is text/xml (SOAP 1.1) or application/soap+xml (SOAP 1.2)")
    if user is None:
        # Integration Server's words for a descriptor that the caller may not use.
        denied = f"[ISS.0088.9164] Access to WSDescriptor {operation} denied."
        return _fault(version, 401, version.wrong, denied)
    try:
        charset = content.get_content_charset()
        payload = _Envelope(version, _decode(request.body, charset)).payload()
    except SoapError as exc:
        code = exc.code or version.wrong
        status = version.wrong_status if code == version.wrong else 500
        return _fault(version, status, code, str(exc))
    name = _element(operation)
    body = (
        f'<tns:{name}Response xmlns:tns="{NAMESPACE}"><tns:user>{escape(user)}</tns:user>'
        f"<tns:echo>{payload}</tns:echo></tns:{name}Response>"
    )
    return _message(version, 200, body)


def _fault(version: Version, status: int, code: str, text: str) -> Answer:
    text = escape(text)
    if version is V11:
        inner = f"<faultcode>soapenv:{code}</faultcode><faultstring>{text}</faultstring>"
    else:
        inner = (
            f"<soapenv:Code><soapenv:Value>soapenv:{code}</soapenv:Value></soapenv:Code>"
            f'<soapenv:Reason><soapenv:Text xml:lang="en">{text}</soapenv:Text></soapenv:Reason>'
        )
    return _message(version, status, f"<soapenv:Fault>{inner}</soapenv:Fault>")


def _message(version: Version, status: int, body: str) -> Answer:
    text = (
        '<?xml version="1.0" encoding="UTF-8"?>\n'
        f'<soapenv:Envelope xmlns:soapenv="{version.envelope}"><soapenv:Body>{body}</soapenv:Body>'
        "</soapenv:Envelope>\n"
    )
    headers = (("WWW-Authenticate", 'Basic realm="webMethods"'),) if status == 401 else ()
    reason = "[ISS.0084.9001] Invalid credentials" if status == 401 else ""
    return Answer(status, f"{version.content_type}; charset=utf-8", text.encode(), headers, reason)


def _decode(body: bytes, charset: str | None) -> str:
    """The charset of the header wins, then a byte order mark, then the XML declaration (RFC 7303, 3)."""
    if charset is None:
        declared = re.match(rb"""<\?xml[^>]*?encoding=["']([A-Za-z0-9._-]+)""", body)
        utf16 = body.startswith((b"\xff\xfe", b"\xfe\xff"))
        charset = "utf-16" if utf16 else declared[1].decode() if declared else "utf-8"
    charset = charset.lower()
    if charset not in ("utf-8", "utf-16", "utf-16le", "utf-16be", "us-ascii", "iso-8859-1"):
        raise SoapError(f"the character set {charset} is not supported")
    try:
        return body.decode(charset).removeprefix("\ufeff")
    except UnicodeDecodeError as exc:
        raise SoapError(f"the message is not in the character set {charset}") from exc


class _Envelope:
    """Finds the children of the Body, each as text that stands on its own."""

    def __init__(self, version: Version, text: str) -> None:
        self._envelope = version.envelope
        self._raw = text.encode()
        self._path: list[str] = []
        self._declared: dict[str | None, str] = {}  # by the element that is about to begin
        self._inherited: dict[str | None, str] = {}  # by the Envelope and the Body
        self._own: dict[str | None, str] = {}  # by the payload itself
        self._start = 0
        self._pieces: list[str] = []
        parser = expat.ParserCreate("utf-8", " ")
        parser.StartDoctypeDeclHandler = self._doctype
        parser.StartNamespaceDeclHandler = self._declare
        parser.StartElementHandler = self._begin
        parser.EndElementHandler = self._end
        self._parser = parser

    def payload(self) -> str:
        """Raises SoapError when this is no envelope of the expected version with something in its Body."""
        try:
            self._parser.Parse(self._raw, True)
        except expat.ExpatError as exc:
            raise SoapError(f"the message is not well-formed XML: {exc}") from exc
        if not self._pieces:
            raise SoapError("the message has no Body with an operation in it")
        return "".join(self._pieces)

    def _doctype(self, *_: object) -> None:
        raise SoapError("a SOAP message must not hold a document type declaration")

    def _declare(self, prefix: str | None, uri: str | None) -> None:
        self._declared[prefix] = uri or ""

    def _begin(self, name: str, attributes: dict[str, str]) -> None:
        declared, self._declared = self._declared, {}
        self._path.append(name)
        match self._path:
            case [root]:
                if root != f"{self._envelope} Envelope":
                    other = root in [f"{each.envelope} Envelope" for each in (V11, V12)]
                    wanted = f"a SOAP Envelope of {self._envelope} was expected"
                    raise SoapError(wanted, "VersionMismatch" if other else None)
                self._inherited |= declared
            case [_, second]:
                if second == f"{self._envelope} Body":
                    self._inherited |= declared
            case [_, second, third]:
                if second == f"{self._envelope} Body":
                    self._start, self._own = self._parser.CurrentByteIndex, declared
                elif attributes.get(f"{self._envelope} mustUnderstand") in ("1", "true"):
                    raise SoapError(f"the header {third.split(' ')[-1]} is not understood", "MustUnderstand")

    def _end(self, _name: str) -> None:
        if len(self._path) == 3 and self._path[1] == f"{self._envelope} Body":
            self._pieces.append(self._cut())
        self._path.pop()

    def _cut(self) -> str:
        """The payload that ends here, with the namespaces that it took from around it."""
        at = self._parser.CurrentByteIndex  # of the end tag; where there is none (<a/>), past the element
        tag = START_TAG.match(self._raw, self._start)
        if tag is None:  # expat has read it, so it is there
            raise SoapError("the message could not be read")
        empty = tag.end() == at and tag[0].endswith(b"/>")
        end = at if empty else self._raw.index(b">", at) + 1
        declarations = "".join(
            f" xmlns{':' + prefix if prefix else ''}={quoteattr(uri)}"
            for prefix, uri in self._inherited.items()
            if prefix not in self._own and uri
        )
        rest = self._raw[tag.end(1) : end].decode()
        return f"{tag[1].decode()}{declarations}{rest}"


def _element(operation: str) -> str:
    """`operation` as an XML name, which can't begin with a digit."""
    return f"_{operation}" if operation[0].isdigit() else operation


def wsdl(operation: str, address: str) -> Answer:
    """The WSDL 1.1 of an integration, with a SOAP 1.1 and a SOAP 1.2 port, both at `address`."""
    template = resources.files("sidecert.twin").joinpath("integration.wsdl").read_text("utf-8")
    text = template.format(ns=NAMESPACE, name=_element(operation), address=quoteattr(address))
    return Answer(200, "text/xml; charset=utf-8", text.encode())
