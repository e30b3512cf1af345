// A STOMP client as pages have it: node stomp.mjs CLIENT ws://… VERSION DESTINATION HOST
// Prints one JSON object a line for each thing that happens; a line on stdin is a command.
import { createRequire } from "node:module";
import readline from "node:readline";
import WebSocket from "ws";

const [client, url, version, destination, host] = process.argv.slice(2);
const tell = (event, more = {}) => console.log(JSON.stringify({ event, ...more }));
const shown = (message) => ({ body: message.body, headers: message.headers });
const protocol = `v${version.replace(".", "")}.stomp`;
const commands = readline.createInterface({ input: process.stdin });

if (client === "stompjs2") {
  // As the articles have it.
  const Stomp = createRequire(import.meta.url)("stompjs");
  const ws = new WebSocket(url);
  const stomp = Stomp.over(ws);
  stomp.debug = null;
  stomp.heartbeat.outgoing = 0;
  stomp.connect(
    "guest",
    "guest",
    () => {
      tell("connected");
      stomp.subscribe(destination, (message) => tell("message", shown(message)), {
        receipt: "ready",
      });
    },
    (error) => tell("error", typeof error === "string" ? { body: error } : shown(error)),
    host,
  );
  stomp.onreceipt = (frame) => tell("receipt", shown(frame));
  commands.on("line", (line) => {
    if (line === "bye") stomp.disconnect(() => process.exit(0));
    else stomp.send(destination, {}, line);
  });
} else if (client === "webstomp") {
  const webstomp = createRequire(import.meta.url)("webstomp-client");
  const ws = new WebSocket(url, [protocol]);
  const stomp = webstomp.over(ws, {
    debug: false,
    protocols: [protocol],
    heartbeat: { outgoing: 1000, incoming: 1000 },
  });
  const headers = { login: "guest", passcode: "guest", ...(host ? { host } : {}) };
  stomp.onreceipt = (frame) => tell("receipt", shown(frame));
  stomp.connect(
    headers,
    (frame) => {
      tell("connected", { ...shown(frame), extensions: ws.extensions });
      stomp.subscribe(destination, (message) => tell("message", shown(message)), {
        receipt: "ready",
      });
    },
    (error) => tell("error", error.command ? shown(error) : { body: `closed: ${error.code}` }),
  );
  commands.on("line", (line) => {
    if (line === "bye") stomp.disconnect(() => process.exit(0));
    else stomp.send(destination, line);
  });
} else {
  const { Client, Versions } = await import("@stomp/stompjs");
  let ws;
  const stomp = new Client({
    webSocketFactory: () => (ws = new WebSocket(url, [protocol])),
    stompVersions: new Versions([version]),
    connectHeaders: { login: "guest", passcode: "guest", ...(host ? { host } : {}) },
    heartbeatIncoming: 1000,
    heartbeatOutgoing: 1000,
    reconnectDelay: 0,
    onConnect: (frame) => {
      tell("connected", { ...shown(frame), extensions: ws.extensions });
      stomp.watchForReceipt("ready", (receipt) => tell("receipt", shown(receipt)));
      stomp.subscribe(destination, (message) => tell("message", shown(message)), {
        receipt: "ready",
      });
    },
    onStompError: (frame) => tell("error", shown(frame)),
    onWebSocketClose: (event) => tell("closed", { code: event.code }),
  });
  stomp.activate();
  commands.on("line", async (line) => {
    if (line === "bye") {
      await stomp.deactivate();
      process.exit(0);
    }
    stomp.publish({ destination, body: line });
  });
}
