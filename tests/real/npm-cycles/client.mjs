// The TypeScript client of Cycles, used as its page shows it; prints what it was told as JSON. CYCLES_BASE_URL, _API_KEY and _TENANT say where.
import {
  BudgetExceededError,
  CyclesClient,
  CyclesConfig,
  commitResponseFromWire,
  getCyclesContext,
  reservationCreateResponseFromWire,
  reserveForStream,
  withCycles,
} from "runcycles";

const client = new CyclesClient(CyclesConfig.fromEnv());
const tenant = process.env.CYCLES_TENANT;
const unit = "USD_MICROCENTS";
const cents = (amount) => ({ unit, amount: amount * 1_000_000 });
const subject = { tenant };
const action = { kind: "llm.completion", name: "test-model" };
const told = {};

const guarded = withCycles(
  { estimate: 5_000_000, actual: (cost) => cost, actionKind: "llm.completion", actionName: "test-model", client },
  async () => {
    const context = getCyclesContext();
    told.inside = { decision: context.decision, scopePath: context.scopePath };
    context.metrics = { tokensInput: 10, tokensOutput: 20 };
    return 3_000_000;
  },
);
told.guarded = await guarded();

try {
  await withCycles({ estimate: 5_000_000, client }, async () => {
    throw new Error("no work");
  })();
} catch (error) {
  told.failed = error.message;
}

const handle = await reserveForStream({ client, estimate: 7_000_000, unit, actionKind: action.kind, actionName: action.name });
await handle.commit(6_000_000, { tokensInput: 1, tokensOutput: 2 });
told.stream = handle.finalized;

const made = await client.createReservation({ idempotency_key: "ts-1", subject, action, estimate: cents(4), ttl_ms: 30_000 });
const { reservationId, expiresAtMs } = reservationCreateResponseFromWire(made.body);
const extended = await client.extendReservation(reservationId, { idempotency_key: "ts-2", extend_by_ms: 10_000 });
told.extended = extended.body.expires_at_ms - expiresAtMs;
told.live = (await client.getReservation(reservationId)).body.status;
const committed = await client.commitReservation(reservationId, { idempotency_key: "ts-3", actual: cents(2) });
told.charged = commitResponseFromWire(committed.body).charged.amount;
const other = await client.createReservation({ idempotency_key: "ts-4", subject, action, estimate: cents(4) });
const released = await client.releaseReservation(other.body.reservation_id, { idempotency_key: "ts-5", reason: "not needed" });
told.released = released.body.released.amount;
told.event = (await client.createEvent({ idempotency_key: "ts-6", subject, action, actual: cents(1) })).status;
told.listed = (await client.listReservations({ tenant })).body.reservations.map((each) => each.status).sort();
told.decided = (await client.decide({ idempotency_key: "ts-7", subject, action, estimate: cents(1) })).body.decision;

try {
  await withCycles({ estimate: 1_000_000_000, client }, async () => "never")();
} catch (error) {
  told.refused = { typed: error instanceof BudgetExceededError, status: error.status, code: error.errorCode };
}
const [balance] = (await client.getBalances({ tenant })).body.balances;
told.balance = { spent: balance.spent.amount, reserved: balance.reserved.amount, remaining: balance.remaining.amount };
process.stdout.write(JSON.stringify(told));
