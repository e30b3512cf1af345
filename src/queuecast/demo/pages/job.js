import { listen } from "./listen.js";
import { gapText, newId, status } from "./page.js";

const card = document.querySelector(".job");
const [start, bar, big, text, notice, share, state] = [
  "start", "bar", "big", "text", "notice", "share", "state",
].map((id) => document.getElementById(id));

let stop = () => {};

// last=1 gives the newest state first: it does not matter when the page is opened.
function follow(job, on) {
  return listen(`../sse/topic/job.${job}?last=1`, on);
}

function submit(job) {
  return fetch("../publish/queue/demo.jobs", {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify({ job }),
  });
}

function show(job) {
  stop();
  card.dataset.state = "waiting";
  card.setAttribute("aria-busy", "true");
  notice.textContent = "";
  big.textContent = "loading…";
  text.textContent = "";
  bar.removeAttribute("value");
  bar.hidden = false;
  status(state, "", "connecting…");
  share.hidden = false;
  const link = share.querySelector("a");
  link.href = link.textContent = new URL(`?job=${job}`, location.href).href;
  return new Promise((live) => {
    stop = follow(job, {
      open() { status(state, "live", "live"); live(); },
      lost() { status(state, "lost", "reconnecting…"); },
      gap(gap) { notice.textContent = gapText(gap); },
      message(data) { draw(JSON.parse(data)); },
    });
  });
}

function draw(progress) {
  card.dataset.state = progress.state;
  bar.value = progress.done;
  if (progress.state !== "done") {
    big.textContent = `${progress.done} %`;
    text.textContent = progress.text;
    return;
  }
  const { pi, darts, seconds } = progress.result;
  big.textContent = `π ≈ ${pi}`;
  text.textContent = `The worker threw ${darts.toLocaleString("en")} darts in ${seconds} seconds.`;
  notice.textContent = "";
  card.setAttribute("aria-busy", "false");
  start.disabled = false;
  stop();
  status(state, "", "done, connection closed");
}

async function begin() {
  start.disabled = true;
  const job = newId();
  history.replaceState(null, "", `?job=${job}`);
  await show(job); // live: whatever the worker says from now on is seen
  const answer = await submit(job).catch(() => null);
  if (answer?.ok) return;
  const problem = await answer?.json().catch(() => null);
  notice.textContent = `The job could not be queued: ${problem?.text ?? "the gateway did not answer"}.`;
  big.textContent = "Not started";
  bar.hidden = true;
  start.disabled = false;
  stop();
}

start.addEventListener("click", begin);

const given = new URLSearchParams(location.search).get("job");
if (given && /^[A-Za-z0-9_-]{1,64}$/.test(given)) show(given);
