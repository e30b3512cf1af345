// npm's EventSource as the client that sleeps: node sleeper.mjs URL. Prints its story whenever it
// has grown: runs of numbers, and the reasons of the gaps between them.
import { EventSource } from "eventsource";

const story = [];
let run = null;
let connections = 0;
let told = "";
const source = new EventSource(process.argv[2]);
source.onopen = () => { connections += 1; };
source.onmessage = ({ data }) => {
  const number = Number(data.slice(1, 12));
  if (run !== null && number === run[1] + 1) {
    run[1] = number;
    return;
  }
  run = [number, number];
  story.push(run);
};
source.addEventListener("gap", ({ data }) => {
  run = null;
  story.push(JSON.parse(data).reason);
});
setInterval(() => {
  const text = JSON.stringify({ connections, story });
  if (text !== told) {
    process.stdout.write(text + "\n");
    told = text;
  }
}, 100);
