// A chat room on a WebSocket. What is said goes into a queue and is confirmed; what everybody
// said comes from a topic. After a lost connection it goes on where it left off, and says again
// what was not confirmed: every line has an id, so nobody sees it twice.

export function join(url, queue, on) {
  const unconfirmed = new Map(), seen = new Set();
  let socket, timer, position = "", wait = 500, left = false;

  const tell = (line) => socket.readyState === WebSocket.OPEN &&
    socket.send(JSON.stringify({ publish: queue, body: line, id: line.id }));

  function open() {
    const target = new URL(url, document.baseURI);
    target.protocol = target.protocol.replace("http", "ws");
    target.searchParams.set("envelope", "json");
    if (position) target.searchParams.set("since", position);
    socket = new WebSocket(target);
    socket.onopen = () => { wait = 500; on.open(); unconfirmed.forEach(tell); };
    socket.onmessage = ({ data }) => receive(JSON.parse(data));
    socket.onclose = ({ code, reason }) => {
      on.lost(reason);
      if (left || code === 4400 || code === 4403) return; // coming back cannot help
      timer = setTimeout(open, wait * (0.5 + Math.random() / 2));
      wait = Math.min(wait * 2, 30000);
    };
  }

  function receive(envelope) {
    if (envelope.position) position = envelope.position;
    if (envelope.gap) on.gap(envelope.gap);
    if (envelope.published) { unconfirmed.delete(envelope.published); on.confirmed(envelope.published); }
    if (envelope.error) { unconfirmed.delete(envelope.id); on.refused(envelope.id, envelope.error); }
    if (envelope.body === undefined) return;
    let line;
    try { line = JSON.parse(envelope.body); } catch { return; } // not said by this code
    if (!line?.id || seen.has(line.id)) return;
    seen.add(line.id);
    if (seen.size > 1000) seen.delete(seen.values().next().value);
    on.line(line);
  }

  open();
  return {
    say(line) { unconfirmed.set(line.id, line); tell(line); },
    leave() { left = true; clearTimeout(timer); socket.close(); },
  };
}
