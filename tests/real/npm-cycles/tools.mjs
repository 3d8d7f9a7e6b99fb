// The MCP server of Cycles over stdio, every one of its tools called by the official MCP client; prints what they gave as JSON.
import { Client } from "@modelcontextprotocol/sdk/client/index.js";
import { StdioClientTransport } from "@modelcontextprotocol/sdk/client/stdio.js";
import { CallToolResultSchema } from "@modelcontextprotocol/sdk/types.js";

const [, , server] = process.argv;
const client = new Client({ name: "test", version: "1" });
await client.connect(new StdioClientTransport({ command: process.execPath, args: [server], env: { ...process.env } }));
const told = { tools: (await client.listTools()).tools.map((tool) => tool.name).sort() };
const tenant = process.env.CYCLES_TENANT;
const subject = { tenant };
const action = { kind: "tool.call", name: "search" };
const cents = (amount) => ({ unit: "USD_MICROCENTS", amount: amount * 1_000_000 });

// `callTool` would hold each result against the tool's output schema: that of version 0.6.1 does not know `remainingTtlMs`, which its own
// client hands on from any server that follows the specification since 0.1.25.16.
async function call(name, args) {
  const request = { method: "tools/call", params: { name: `cycles_${name}`, arguments: args } };
  const result = await client.request(request, CallToolResultSchema);
  return result.isError ? { error: result.content[0].text } : (result.structuredContent ?? JSON.parse(result.content[0].text));
}

told.decide = await call("decide", { idempotencyKey: "m-1", subject, action, estimate: cents(1) });
const made = await call("reserve", { idempotencyKey: "m-2", subject, action, estimate: cents(5) });
told.reserve = made;
told.extend = await call("extend", { reservationId: made.reservationId, idempotencyKey: "m-3", extendByMs: 10_000 });
told.get = await call("get_reservation", { reservationId: made.reservationId });
told.commit = await call("commit", { reservationId: made.reservationId, idempotencyKey: "m-4", actual: cents(4) });
const other = await call("reserve", { idempotencyKey: "m-5", subject, action, estimate: cents(5) });
told.release = await call("release", { reservationId: other.reservationId, idempotencyKey: "m-6" });
told.event = await call("create_event", { idempotencyKey: "m-7", subject, action, actual: cents(2) });
told.list = await call("list_reservations", { tenant });
told.balance = await call("check_balance", { tenant });
told.refused = await call("reserve", { idempotencyKey: "m-8", subject, action, estimate: cents(1000) });
await client.close();
process.stdout.write(JSON.stringify(told));
