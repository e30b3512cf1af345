// Prints what npm's EventSource gets, one JSON object a line: node follow.mjs URL
import { EventSource } from "eventsource";

const say = (object) => process.stdout.write(JSON.stringify(object) + "\n");
const source = new EventSource(process.argv[2]);
source.onopen = () => say({ type: "open" });
source.onerror = (event) => say({ type: "error", state: source.readyState, code: event.code ?? null });
for (const type of ["message", "position", "gap", "binary", "disconnect"]) {
  source.addEventListener(type, ({ data, lastEventId }) => say({ type, data, id: lastEventId }));
}
