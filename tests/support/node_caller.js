// Calls with Node's http as programs use it: one keep-alive agent, all calls of one run after each other.
// The plan comes as JSON on stdin, the answers go as JSON to stdout.
//   {base, proxy, calls: [{method, path, body, chunked, follow}]}   body: base64
"use strict";
const http = require("node:http");

const agent = new http.Agent({ keepAlive: true, maxSockets: 1 });

function once(plan, call, url) {
  return new Promise((resolve, reject) => {
    const target = new URL(url);
    const to = plan.proxy ? new URL(plan.proxy) : target;
    const body = call.body === undefined ? undefined : Buffer.from(call.body, "base64");
    const headers = { Host: target.host };
    if (body !== undefined && !call.chunked) headers["Content-Length"] = body.length;
    const request = http.request({
      agent, headers,
      method: call.method,
      host: to.hostname,
      port: to.port || 80,
      path: plan.proxy ? url : target.pathname + target.search,
    });
    request.setTimeout(20000, () => request.destroy(new Error("no answer within 20 s")));
    request.on("error", reject);
    request.on("response", (response) => {
      const pieces = [];
      response.on("data", (piece) => pieces.push(piece));
      response.on("error", reject);
      response.on("end", () => resolve({
        status: response.statusCode,
        location: response.headers.location,
        complete: response.complete,
        reused: request.reusedSocket,
        body: Buffer.concat(pieces).toString("base64"),
      }));
    });
    // In pieces, so that a chunked body has several chunks.
    for (let at = 0; body !== undefined && at < body.length; at += 50000) {
      request.write(body.subarray(at, at + 50000));
    }
    request.end();
  });
}

async function main() {
  let text = "";
  for await (const piece of process.stdin) text += piece;
  const plan = JSON.parse(text);
  const answers = [];
  for (const call of plan.calls) {
    let url = plan.base + call.path;
    let answer = await once(plan, call, url);
    for (let hops = 0; call.follow && answer.location && hops < 5; hops += 1) {
      url = new URL(answer.location, url).href;
      answer = await once(plan, call, url);
    }
    answers.push(answer);
  }
  agent.destroy();
  process.stdout.write(JSON.stringify(answers));
}

main().catch((error) => { console.error(String(error)); process.exitCode = 1; });
