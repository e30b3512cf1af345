import { gapText, newId, status } from "./page.js";
import { join } from "./room.js";

const list = document.getElementById("lines");
const form = document.getElementById("form");
const text = document.getElementById("text");
const name = document.getElementById("name");
const state = document.getElementById("state");
const SHOWN = 500; // lines kept on the page

name.value = sessionStorage.getItem("name") || `guest-${newId().slice(0, 4)}`;
name.addEventListener("change", () => sessionStorage.setItem("name", name.value));

const mine = new Map();

const room = join("../ws/topic/demo.chat?last=50", "/queue/demo.chat", {
  open() { status(state, "live", "connected"); },
  lost(reason) { status(state, "lost", reason ? `reconnecting… (${reason})` : "reconnecting…"); },
  confirmed(id) { mark(id, "queued ✓"); },
  refused(id, error) {
    if (mine.has(id)) mark(id, `refused: ${error.text}`);
    else append(element("li", "gap", error.text));
    mine.delete(id);
  },
  gap(gap) { append(element("li", "gap", gapText(gap))); },
  line(line) {
    if (!mine.has(line.id)) append(draw(line));
    else {
      mark(line.id, "delivered to everybody ✓✓");
      mine.get(line.id).classList.remove("pending");
      mine.delete(line.id);
    }
  },
});

form.addEventListener("submit", (event) => {
  event.preventDefault();
  const said = text.value.trim();
  if (!said) return;
  const line = { id: newId(), name: name.value.trim() || "guest", text: said, at: Date.now() };
  const item = draw(line, true, "sending…");
  item.classList.add("pending");
  mine.set(line.id, item);
  append(item);
  room.say(line);
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
