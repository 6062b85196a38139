"""sidecert inside mitmdump or mitmweb, with small addons beside it that look at its flows or change them."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import textwrap
import time
import urllib.request
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from support.certs import private_folder
from support.clients import Address
from support.peers import free_port

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)  # mitmproxy's use of pyparsing
    from mitmproxy.addons.next_layer import NextLayer
    from mitmproxy.addons.proxyserver import Proxyserver
    from mitmproxy.hooks import Hook
    from mitmproxy.http import HTTPFlow
    from mitmproxy.io import FlowReader

    from sidecert.inspection import InspectedExchange, Stage, install

__all__ = ["Hook", "InspectedExchange", "NextLayer", "Proxyserver", "Stage", "Tool", "inspecting", "install"]

SCRIPT = Path(__file__).resolve().parents[2] / "addon" / "sidecert" / "script.py"
PATIENCE = 20.0
WEB_PASSWORD = "only-for-tests"

NOTES = '''
import json, os

class Notes:
    """Writes a line for each hook."""

    def __init__(self):
        self.file = open(os.environ["NOTES"], "a", buffering=1)

    def note(self, hook, flow):
        size = None if flow.request.raw_content is None else len(flow.request.raw_content)
        answer = None
        if flow.response is not None:
            content = flow.response.raw_content
            answer = [flow.response.status_code, None if content is None else len(content)]
        error = None if flow.error is None else flow.error.msg
        fields = dict(hook=hook, path=flow.request.path, request=size, answer=answer, error=error)
        self.file.write(json.dumps({**fields, "meta": dict(flow.metadata)}) + "\\n")

    def requestheaders(self, flow): self.note("requestheaders", flow)
    def request(self, flow): self.note("request", flow)
    def responseheaders(self, flow): self.note("responseheaders", flow)
    def response(self, flow): self.note("response", flow)
    def error(self, flow): self.note("error", flow)

addons = [Notes()]
'''


class Tool:
    """A running mitmdump or mitmweb with our script, `addons` (their source) and a note of each hook."""

    def __init__(
        self, tool: str, folder: Path, config: Mapping[str, Any], addons: str, options: list[str]
    ) -> None:
        private_folder(folder)
        path = folder / "sidecert.yaml"
        path.write_text(yaml.safe_dump(dict(config)))
        (folder / "notes.py").write_text(NOTES)
        (folder / "addons.py").write_text(textwrap.dedent(addons))
        self.saved = folder / "out.flows"
        self.web_port = free_port()
        self._notes = folder / "notes.jsonl"
        self._log = folder / "log"
        command = [str(Path(sys.executable).with_name(tool)), "-n", "--set", f"confdir={folder / 'mitm'}"]
        for script in (SCRIPT, folder / "addons.py", folder / "notes.py"):
            command += ["-s", str(script)]
        command += ["--set", f"sidecert={path}", "-w", str(self.saved), *options]
        if tool == "mitmweb":
            command += ["--no-web-open-browser", "--set", f"web_port={self.web_port}"]
            command += ["--set", f"web_password={WEB_PASSWORD}"]
        environment = {**os.environ, "PYTHONUNBUFFERED": "1", "NOTES": str(self._notes)}
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, env=environment
            )

    @property
    def output(self) -> str:
        return self._log.read_text(errors="replace")

    @property
    def notes(self) -> list[dict[str, Any]]:
        """What the hooks were given, in their order."""
        text = self._notes.read_text() if self._notes.exists() else ""
        return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]

    def hooks(self, path: str) -> list[str]:
        """The hooks that the flow of that path has had."""
        return [note["hook"] for note in self.notes if note["path"] == path]

    def wait_for(self, condition: Callable[[], Any], why: str = "what was waited for did not come") -> Any:
        """Waits until `condition` gives something true, and gives it back."""
        deadline = time.monotonic() + PATIENCE
        while not (found := condition()):
            assert self.process.poll() is None, f"it ended with {self.process.returncode}:\n{self.output}"
            assert time.monotonic() < deadline, f"{why}:\n{self.output}"
            time.sleep(0.01)
        return found

    def wait_for_note(self, hook: str, path: str) -> dict[str, Any]:
        """What that hook was given for the flow of that path."""

        def find() -> dict[str, Any] | None:
            return next((n for n in self.notes if (n["hook"], n["path"]) == (hook, path)), None)

        found: dict[str, Any] = self.wait_for(find, f"no {hook} for {path}")
        return found

    @property
    def listener(self) -> Address:
        """The address of the first listener."""
        host, port = re.findall(r"\] listening on ([0-9.]+):(\d+)", self.output)[0]
        return host, int(port)

    def web(self, method: str, path: str) -> bytes:
        """One call of mitmweb's own interface, as its page makes it."""
        request = urllib.request.Request(f"http://127.0.0.1:{self.web_port}{path}", method=method)
        request.add_header("Authorization", f"Bearer {WEB_PASSWORD}")
        request.add_header("Cookie", "_mitmproxy_xsrf=abcd")
        request.add_header("X-XSRFToken", "abcd")
        with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
            content: bytes = answer.read()
        return content

    def flows(self) -> list[dict[str, Any]]:
        """The flows as mitmweb lists them."""
        found: list[dict[str, Any]] = json.loads(self.web("GET", "/flows"))
        return found

    def stop(self) -> list[HTTPFlow]:
        """Ends it in good order; gives back what it has saved."""
        self.process.terminate()
        assert self.process.wait(PATIENCE) == 0
        with self.saved.open("rb") as file:
            return [flow for flow in FlowReader(file).stream() if isinstance(flow, HTTPFlow)]


@contextmanager
def inspecting(
    folder: Path, config: Mapping[str, Any], addons: str = "", *options: str, tool: str = "mitmdump"
) -> Iterator[Tool]:
    """A ready tool for the length of a with block; its log is printed at the end."""
    running = Tool(tool, folder, config, addons, list(options))
    try:
        running.wait_for(lambda: "ready, generation" in running.output, "it was not ready in time")
        yield running
    finally:
        running.process.kill()
        running.process.wait()
        print(running.output)
