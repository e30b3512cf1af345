// One line on a canvas that moves with time. Points are { at, value }, at in milliseconds.

const SPAN = 60000; // what is seen, ms
const LATE = 900; // drawn so much behind, so that the next point is already there

export class Chart {
  constructor(canvas, series) {
    this.canvas = canvas;
    this.series = series;
    this.points = [];
    this.gaps = [];
    this.low = this.high = null;
  }

  add(at, value) {
    const last = this.points.at(-1);
    if (last && at <= last.at) return;
    this.points.push({ at, value });
    // A little more than what is seen: a page that stays open for days must not grow.
    while (this.points.length > 2 && this.points[1].at < at - SPAN - LATE) this.points.shift();
  }

  gap(at) {
    this.gaps = [...this.gaps.filter((each) => each > at - SPAN), at].slice(-20);
  }

  draw(now) {
    const { canvas } = this;
    const ratio = window.devicePixelRatio || 1;
    const width = canvas.clientWidth, height = canvas.clientHeight;
    if (canvas.width !== Math.round(width * ratio)) canvas.width = Math.round(width * ratio);
    if (canvas.height !== Math.round(height * ratio)) canvas.height = Math.round(height * ratio);
    const paint = canvas.getContext("2d");
    paint.setTransform(ratio, 0, 0, ratio, 0, 0);
    paint.clearRect(0, 0, width, height);
    const style = getComputedStyle(canvas);
    const color = (name) => style.getPropertyValue(name).trim();
    const right = 38, bottom = 18, top = 6;
    const x = (at) => (width - right) * (1 - (now - LATE - at) / SPAN);
    this.scale();
    const y = (value) =>
      top + (height - top - bottom) * (1 - (value - this.low) / (this.high - this.low));

    paint.font = "11px system-ui, sans-serif";
    paint.textBaseline = "middle";
    for (let step = 0; step <= 2; step += 1) {
      const value = this.low + ((this.high - this.low) * step) / 2;
      paint.strokeStyle = color("--line");
      paint.lineWidth = 1;
      paint.beginPath();
      paint.moveTo(0, Math.round(y(value)) + 0.5);
      paint.lineTo(width - right, Math.round(y(value)) + 0.5);
      paint.stroke();
      paint.fillStyle = color("--soft");
      paint.textAlign = "right";
      paint.fillText(value.toFixed(this.high - this.low < 4 ? 1 : 0), width - 2, y(value));
    }
    paint.textBaseline = "alphabetic";
    paint.textAlign = "left";
    paint.fillText("1 min ago", 0, height - 3);
    paint.textAlign = "right";
    paint.fillText("now", width - right, height - 3);

    const seen = this.points;
    if (seen.length < 2) return;
    paint.save();
    paint.beginPath();
    paint.rect(0, 0, width - right, height - bottom + 2);
    paint.clip();
    paint.beginPath();
    paint.moveTo(x(seen[0].at), y(seen[0].value));
    for (let i = 1; i < seen.length; i += 1) {
      const [a, b] = [seen[i - 1], seen[i]];
      const middle = (x(a.at) + x(b.at)) / 2;
      paint.bezierCurveTo(middle, y(a.value), middle, y(b.value), x(b.at), y(b.value));
    }
    paint.lineWidth = 2;
    paint.lineJoin = "round";
    paint.strokeStyle = color(this.series);
    paint.stroke();
    paint.lineTo(x(seen.at(-1).at), height);
    paint.lineTo(x(seen[0].at), height);
    paint.globalAlpha = 0.12;
    paint.fillStyle = color(this.series);
    paint.fill();
    paint.globalAlpha = 1;
    paint.setLineDash([3, 4]);
    paint.strokeStyle = color("--warn");
    for (const gap of this.gaps) {
      paint.beginPath();
      paint.moveTo(x(gap), 0);
      paint.lineTo(x(gap), height);
      paint.stroke();
    }
    paint.restore();
  }

  // The axis follows the values, gently, so that a peak does not make the picture jump.
  scale() {
    let low = Infinity, high = -Infinity;
    for (const { value } of this.points) {
      low = Math.min(low, value);
      high = Math.max(high, value);
    }
    if (low > high) [low, high] = [0, 1];
    const room = Math.max((high - low) * 0.15, 0.5);
    low = Math.max(0, low - room);
    high += room;
    const ease = this.low === null ? 1 : 0.08;
    this.low = (this.low ?? low) + (low - (this.low ?? low)) * ease;
    this.high = (this.high ?? high) + (high - (this.high ?? high)) * ease;
  }
}
