// An EventSource comes back by itself after a lost connection, but stops for good when a proxy
// answers 502 while the gateway restarts. This one opens again then, where it left off.

export function listen(url, on) {
  let source, timer, position = "", wait = 1000;
  const note = (event) => { position = event.lastEventId || position; };

  function open() {
    const target = new URL(url, document.baseURI);
    if (position) target.searchParams.set("since", position);
    source = new EventSource(target);
    source.onopen = () => { wait = 1000; on.open?.(); };
    source.onmessage = (event) => { note(event); on.message(event.data); };
    source.addEventListener("position", note);
    source.addEventListener("gap", (event) => { note(event); on.gap?.(JSON.parse(event.data)); });
    source.onerror = () => {
      on.lost?.();
      if (source.readyState !== EventSource.CLOSED) return; // the browser tries again
      timer = setTimeout(open, wait * (0.5 + Math.random() / 2));
      wait = Math.min(wait * 2, 30000);
    };
  }

  open();
  return () => { clearTimeout(timer); source.close(); };
}
