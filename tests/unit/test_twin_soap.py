"""The twin's SOAP integration."""

from __future__ import annotations

from xml.etree import ElementTree

import pytest

from sidecert.twin import soap
from sidecert.twin.http import Answer, Request
from sidecert.twin.soap import V11, V12, Version

VERSIONS = pytest.mark.parametrize("version", [V11, V12], ids=["1.1", "1.2"])
TNS = f"{{{soap.NAMESPACE}}}"


def envelope(version: Version, body: str, header: str = "", declarations: str = "") -> str:
    return (
        f'<?xml version="1.0"?><e:Envelope xmlns:e="{version.envelope}" {declarations}>'
        f"{header}<e:Body>{body}</e:Body></e:Envelope>"
    )


def run(
    version: Version, message: str | bytes, user: str | None = "alice", content_type: str | None = None
) -> Answer:
    raw = message.encode() if isinstance(message, str) else message
    headers = (("content-type", content_type or f"{version.content_type}; charset=utf-8"),)
    return soap.run(Request("POST", "/x", "", headers, raw), user, "orders")


def body_of(version: Version, result: Answer) -> ElementTree.Element:
    assert result.content_type == f"{version.content_type}; charset=utf-8"
    found = ElementTree.fromstring(result.body).find(f"{{{version.envelope}}}Body")
    assert found is not None
    return found


def fault_of(version: Version, result: Answer) -> tuple[str, str]:
    """Code and text."""
    fault = body_of(version, result)[0]
    ns = f"{{{version.envelope}}}"
    assert fault.tag == f"{ns}Fault"
    code, text = (
        ("faultcode", "faultstring") if version is V11 else (f"{ns}Code/{ns}Value", f"{ns}Reason/{ns}Text")
    )
    return fault.findtext(code, "").removeprefix("soapenv:"), fault.findtext(text, "")


def echo_of(version: Version, result: Answer) -> ElementTree.Element:
    assert result.status == 200
    response = body_of(version, result)[0]
    assert response.tag == f"{TNS}ordersResponse"
    assert response.findtext(f"{TNS}user") == "alice"
    echo = response.find(f"{TNS}echo")
    assert echo is not None
    return echo


@VERSIONS
def test_the_answer_holds_the_user_and_the_payload_in_the_callers_version(version: Version) -> None:
    """SOAP 1.1 in, SOAP 1.1 out; 1.2 likewise."""
    result = run(
        version, envelope(version, '<order xmlns="urn:o" n="1">x &amp; y<!-- c --><![CDATA[<]]></order>')
    )
    assert b'<order xmlns="urn:o" n="1"' not in result.body  # the Envelope's prefix came with it
    assert b">x &amp; y<!-- c --><![CDATA[<]]></order>" in result.body
    order = echo_of(version, result)[0]
    assert (order.tag, order.get("n"), order.text) == ("{urn:o}order", "1", "x & y<")


@pytest.mark.parametrize(
    "payload",
    [
        "<o/>",
        "<o />",
        "<o a='>'/>",
        '<o a="/>"></o>',
        "<o>/></o>",
        "<o><p/></o>",
        "<o><p></p></o>",
        "<o/><p/>",
        "<o></o ><p>t</p\n>",
        "<o>\u00e9</o><p>\U0001f600</p>",
    ],
)
def test_a_payload_comes_back_as_it_was(payload: str) -> None:
    """Whatever way its tags are written: the same elements, attributes and text."""
    sent = ElementTree.fromstring(f"<r>{payload}</r>")
    got = echo_of(V11, run(V11, envelope(V11, payload)))
    assert [ElementTree.tostring(each) for each in got] == [ElementTree.tostring(each) for each in sent]


def test_namespaces_declared_around_a_payload_come_with_it() -> None:
    """Also those that only values use, such as the xsd of a type; and its own declaration wins."""
    message = envelope(V11, '<q:o xmlns:r="urn:own" r:a="1" t="xsd:int"/>', "", (
        'xmlns="urn:default" xmlns:q="urn:q" xmlns:r="urn:outer" xmlns:xsd="urn:xsd&amp;"'
    ))  # fmt: skip
    result = run(V11, message)
    order = echo_of(V11, result)[0]
    assert (order.tag, order.get("{urn:own}a")) == ("{urn:q}o", "1")
    assert b'xmlns:xsd="urn:xsd&amp;"' in result.body
    assert b"urn:outer" not in result.body


@pytest.mark.parametrize(
    ("encoding", "content_type"),
    [
        ("utf-16", "text/xml"),
        ("iso-8859-1", "text/xml; charset=ISO-8859-1"),
        ("utf-8-sig", "text/xml"),
    ],
)
def test_other_encodings_are_read(encoding: str, content_type: str) -> None:
    """By the header's charset, or the byte order mark."""
    message = envelope(V11, "<o>\u00e9</o>").removeprefix('<?xml version="1.0"?>').encode(encoding)
    assert echo_of(V11, run(V11, message, content_type=content_type))[0].text == "\u00e9"


def test_an_encoding_can_be_declared_in_the_message_alone() -> None:
    """Where the header is silent."""
    message = envelope(V11, "<o>\u00e9</o>").replace("?>", ' encoding="ISO-8859-1"?>').encode("latin-1")
    assert echo_of(V11, run(V11, message, content_type="text/xml"))[0].text == "\u00e9"


@VERSIONS
@pytest.mark.parametrize(
    ("message", "words"),
    [
        ("", "not well-formed"),
        ("<", "not well-formed"),
        ("<a/>", "a SOAP Envelope of"),
        ("<Envelope/>", "a SOAP Envelope of"),
        ('<!DOCTYPE x [<!ENTITY a "b">]><x>&a;</x>', "document type declaration"),
        (b"\xff\xff<a/>", "character set utf-8"),
    ],
)
def test_a_message_that_is_no_envelope_gets_a_fault_that_says_so(
    version: Version, message: str | bytes, words: str
) -> None:
    """SOAP 1.1 says Client with 500, SOAP 1.2 Sender with 400."""
    result = run(version, message)
    code, text = fault_of(version, result)
    assert (result.status, code) == ((500, "Client") if version is V11 else (400, "Sender"))
    assert words in text


@VERSIONS
@pytest.mark.parametrize("inner", ["", " text ", "<!-- nothing -->"])
def test_an_empty_body_gets_a_fault(version: Version, inner: str) -> None:
    """There is nothing to run."""
    assert "no Body with an operation" in fault_of(version, run(version, envelope(version, inner)))[1]


def test_an_envelope_of_the_other_version_is_a_version_mismatch() -> None:
    """SOAP 1.1, 4.4; SOAP 1.2 part 1, 5.4.7."""
    assert fault_of(V11, run(V11, envelope(V12, "<o/>")))[0] == "VersionMismatch"
    assert fault_of(V12, run(V12, envelope(V11, "<o/>")))[0] == "VersionMismatch"


@VERSIONS
def test_a_header_that_must_be_understood_is_refused(version: Version) -> None:
    """The twin understands none; one that may be ignored is ignored."""
    header = '<e:Header><s:Security xmlns:s="urn:s" {}/></e:Header>'
    result = run(version, envelope(version, "<o/>", header.format('e:mustUnderstand="1"')))
    assert fault_of(version, result) == ("MustUnderstand", "the header Security is not understood")
    assert result.status == 500
    assert run(version, envelope(version, "<o/>", header.format(""))).status == 200


@VERSIONS
def test_an_unmapped_certificate_gets_a_fault_with_401(version: Version) -> None:
    """In Integration Server's words."""
    result = run(version, envelope(version, "<o/>"), user=None)
    assert result.status == 401
    assert fault_of(version, result)[1] == "[ISS.0088.9164] Access to WSDescriptor orders denied."


@pytest.mark.parametrize("content_type", ["application/json", "text/plain", " "])
def test_what_is_no_soap_message_gets_415(content_type: str) -> None:
    """The versions are told apart by the media type, so there is no guess without one."""
    assert run(V11, envelope(V11, "<o/>"), content_type=content_type).status == 415


def test_the_wsdl_is_well_formed_and_its_names_resolve() -> None:
    """Two ports, one for each SOAP version, both at the address that was given."""
    root = ElementTree.fromstring(soap.wsdl("4711-orders", "https://h:8443/a?b&c").body)
    w = "{http://schemas.xmlsoap.org/wsdl/}"
    bindings = {each.get("name") for each in root.iter(f"{w}binding")}
    ports = list(root.iter(f"{w}port"))
    assert {(port.get("binding") or "").removeprefix("tns:") for port in ports} == bindings
    assert [port[0].get("location") for port in ports] == ["https://h:8443/a?b&c"] * 2
    assert [port[0].tag for port in ports] == [
        "{http://schemas.xmlsoap.org/wsdl/soap/}address",
        "{http://schemas.xmlsoap.org/wsdl/soap12/}address",
    ]
    messages = {each.get("name") for each in root.iter(f"{w}message")}
    elements = {each.get("name") for each in root.iter("{http://www.w3.org/2001/XMLSchema}element")}
    for part in root.iter(f"{w}part"):
        assert (part.get("element") or "").removeprefix("tns:") in elements
    for kind in ("input", "output"):
        [used] = [each for each in root.iter(f"{w}{kind}") if each.get("message")]
        assert (used.get("message") or "").removeprefix("tns:") in messages
