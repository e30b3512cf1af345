import { Chart } from "./chart.js";
import { listen } from "./listen.js";
import { gapText, status } from "./page.js";

const state = document.getElementById("state");
const notice = document.getElementById("notice");
const rate = document.getElementById("rate");
const meters = new Map();
for (const element of document.querySelectorAll(".meter")) {
  meters.set(element.dataset.metric, {
    chart: new Chart(element.querySelector("canvas"), element.dataset.series),
    now: element.querySelector("output"),
  });
}

// The points carry the back end's clock; this is how far ahead of ours it is.
let ahead = null;
let arrived = [];
const clock = () => Date.now() + (ahead ?? 0);

listen("../sse/topic/metrics.%23?envelope=json&last=480", {
  open() { status(state, "live", "live"); },
  lost() { status(state, "lost", "reconnecting…"); },
  gap(gap) {
    notice.textContent = gapText(gap);
    setTimeout(() => { notice.textContent = ""; }, 15000);
    if (gap.reason !== "unretained") for (const { chart } of meters.values()) chart.gap(clock());
  },
  message(data) {
    const { destination, body } = JSON.parse(data);
    const meter = meters.get(destination.replace("/topic/metrics.", ""));
    if (!meter) return;
    const { value, at } = JSON.parse(body);
    ahead = Math.max(ahead ?? -Infinity, at - Date.now());
    meter.chart.add(at, value);
    meter.now.textContent = value.toFixed(value < 100 ? 1 : 0);
    arrived.push(at);
  },
});

function draw() {
  for (const { chart } of meters.values()) chart.draw(clock());
}

setInterval(() => {
  arrived = arrived.filter((at) => at > clock() - 5000);
  rate.textContent = `${(arrived.length / 5).toFixed(0)} messages/s`;
}, 1000);

if (matchMedia("(prefers-reduced-motion: reduce)").matches) {
  setInterval(draw, 1000);
} else {
  (function frame() {
    draw();
    requestAnimationFrame(frame);
  })();
}
