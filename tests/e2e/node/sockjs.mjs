// A STOMP client over SockJS: node sockjs.mjs CLIENT http://…/stomp TRANSPORT DESTINATION
// Prints one JSON object a line for each thing that happens; a line on stdin is a command.
import { createRequire } from "node:module";
import readline from "node:readline";

const require = createRequire(import.meta.url);
const SockJS = require("sockjs-client");

const [client, url, transport, destination] = process.argv.slice(2);
const tell = (event, more = {}) => console.log(JSON.stringify({ event, ...more }));
const shown = (message) => ({ body: message.body, headers: message.headers });
const commands = readline.createInterface({ input: process.stdin });
let socket;
const open = () => {
  socket = new SockJS(url, null, { transports: [transport] });
  return socket;
};

if (client === "stompjs2") {
  const Stomp = require("stompjs");
  const stomp = Stomp.over(open());
  stomp.debug = null;
  stomp.heartbeat.outgoing = 0;
  stomp.connect(
    "guest",
    "guest",
    () => {
      tell("connected", { transport: socket.transport });
      stomp.subscribe(destination, (message) => tell("message", shown(message)), {
        receipt: "ready",
      });
    },
    (error) => tell("error", typeof error === "string" ? { body: error } : shown(error)),
    "/",
  );
  stomp.onreceipt = (frame) => tell("receipt", shown(frame));
  commands.on("line", (line) => {
    if (line === "bye") stomp.disconnect(() => process.exit(0));
    else stomp.send(destination, {}, line);
  });
} else {
  const { Client } = await import("@stomp/stompjs");
  const stomp = new Client({
    webSocketFactory: open,
    connectHeaders: { login: "guest", passcode: "guest" },
    heartbeatIncoming: 1000,
    heartbeatOutgoing: 1000,
    reconnectDelay: 200,
    onConnect: (frame) => {
      tell("connected", { ...shown(frame), transport: socket.transport });
      stomp.watchForReceipt("ready", (receipt) => tell("receipt", shown(receipt)));
      stomp.subscribe(destination, (message) => tell("message", shown(message)), {
        receipt: "ready",
      });
    },
    onStompError: (frame) => tell("error", shown(frame)),
    onWebSocketClose: (event) => tell("closed", { code: event.code, reason: event.reason }),
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
