import { connect } from "../queuecast.js";
import { gapText, newId, status } from "./page.js";

const list = document.getElementById("lines");
const form = document.getElementById("form");
const text = document.getElementById("text");
const name = document.getElementById("name");
const state = document.getElementById("state");
const SHOWN = 500; // lines kept on the page

name.value = sessionStorage.getItem("name") || `guest-${newId().slice(0, 4)}`;
name.addEventListener("change", () => sessionStorage.setItem("name", name.value));

const mine = new Map(), heard = new Set();

// What is said goes into a queue and is confirmed; what everybody said comes from a topic. After
// a lost connection both go on where they were.
const client = connect(undefined, {
  state(now) {
    if (now === "open") status(state, "live", "connected");
    else if (now === "waiting") status(state, "lost", "reconnecting…");
  },
});

client.subscribe("/topic/demo.chat", (message) => {
  let line;
  try { line = message.json(); } catch { return; } // not said by this page
  if (line?.id) hear(line);
}, {
  last: 50,
  gap(gap) { append(element("li", "gap", gapText(gap))); },
  error(error) { append(element("li", "gap", error.message)); },
});

function say(line) {
  client.publish("/queue/demo.chat", line).then(
    () => mark(line.id, "queued ✓"),
    (error) => { mark(line.id, `refused: ${error.message}`); mine.delete(line.id); },
  );
}

function hear(line) {
  if (heard.has(line.id)) return; // a bridge may copy a message twice when it was cut off
  heard.add(line.id);
  if (heard.size > 1000) heard.delete(heard.values().next().value);
  if (!mine.has(line.id)) return append(draw(line));
  mark(line.id, "delivered to everybody ✓✓");
  mine.get(line.id).classList.remove("pending");
  mine.delete(line.id);
}

form.addEventListener("submit", (event) => {
  event.preventDefault();
  const said = text.value.trim();
  if (!said) return;
  const line = { id: newId(), name: name.value.trim() || "guest", text: said, at: Date.now() };
  const item = draw(line, true, "sending…");
  item.classList.add("pending");
  mine.set(line.id, item);
  append(item);
  say(line);
  text.value = "";
  text.focus();
});

function draw(line, own = line.name === name.value, note = "") {
  const item = element("li", own ? "mine" : "");
  const time = new Date(Number(line.at) || Date.now());
  const clock = time.toLocaleTimeString([], { hour: "2-digit", minute: "2-digit" });
  item.append(element("div", "who", `${line.name} · ${clock}`), element("div", "says", line.text));
  item.append(element("div", "who note", note));
  return item;
}

function mark(id, words) {
  const note = mine.get(id)?.querySelector(".note");
  if (note) note.textContent = words;
}

function append(item) {
  document.getElementById("empty")?.remove();
  const atEnd = list.scrollHeight - list.scrollTop - list.clientHeight < 80;
  list.append(item);
  while (list.children.length > SHOWN) list.firstElementChild.remove();
  if (atEnd) list.scrollTop = list.scrollHeight;
}

function element(tag, className, words) {
  const made = document.createElement(tag);
  made.className = className;
  if (words !== undefined) made.textContent = String(words);
  return made;
}
