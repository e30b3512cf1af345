// The browser's side of Queuecast: one connection for all subscriptions of a page, over WebSocket
// or, where that does not come through, Server-Sent Events or long poll. It comes back by itself
// and resumes every subscription at the position that it had, on whatever transport.
//
// What a link (one connection over one transport) owes the client: it calls `opened` when its
// subscriptions are under way, `alive` for every sign of life, `receive` for what comes, `refused`
// for what never will, and `lost` at its end; after `close` it calls nothing.

/**
 * @typedef {object} Message
 * @property {string} destination where it was published
 * @property {string | Uint8Array} body text, or bytes where it is not UTF-8 or `binary` says so
 * @property {Record<string, any>} headers bytes among them are `{base64}`
 * @property {string} [position] where it stands; messages of queues have none
 * @property {boolean} [redelivered] it came before, to this or another subscriber
 * @property {() => any} json parses the body
 * @property {() => Promise<void>} ack takes it off its queue (`ack: "client"`)
 * @property {(requeue?: boolean) => Promise<void>} nack gives it back, with `false` gives it up
 */
/**
 * @typedef {object} Gap messages are missing, or may be
 * @property {string} reason
 * @property {string} last the last position before it, "" if there is none
 * @property {string} first where it goes on
 */
/**
 * @typedef {object} SubscribeOptions
 * @property {string} [since] a position, "first", or a time (RFC 3339)
 * @property {number} [last] the last N messages first
 * @property {"auto" | "client"} [ack] "client": each message is settled by its ack() or nack()
 * @property {number} [prefetch] at most so many unsettled messages
 * @property {"auto" | "always"} [binary] "always": bodies are bytes even where they are UTF-8
 * @property {(gap: Gap) => void} [gap]
 * @property {(error: QueuecastError) => void} [error] the subscription is over
 */
/** @typedef {{readonly position: string, close: () => void}} Subscription */
/** @typedef {"connecting" | "open" | "waiting" | "closed"} State */
/**
 * @typedef {object} Options
 * @property {("websocket" | "sse" | "poll")[]} [transports] tried in this order
 * @property {Storage} [storage] keeps positions, so that they outlive a reload
 * @property {(state: State, transport: string) => void} [state]
 * @property {number} [retry] milliseconds before the first new attempt; doubled up to 30 s
 * @property {number} [patience] milliseconds after which a publish without an answer fails
 */
/** @typedef {{on: (message: Message) => void, options: SubscribeOptions}} User */
/**
 * @typedef {object} Interest a destination and who listens to it
 * @property {string} name
 * @property {boolean} queue
 * @property {string} at its position, "" while it has none
 * @property {SubscribeOptions} first how it begins
 * @property {Set<User>} users
 */

export class QueuecastError extends Error {
  /** @param {{code: string, text: string, hint?: string, retry?: boolean}} problem */
  constructor({ code, text, hint, retry }) {
    super(hint ? `${text} (${hint})` : text);
    this.code = code;
    this.retry = !!retry;
  }
}

const LONGEST = 30000;
const OPEN_WITHIN = 8000;
// Names for what is said often: they minify.
const WAITING = "waiting", CONNECTING = "connecting", OPEN = "open", ENDED = "closed";
const JSON_TYPE = "application/json";
const scope = globalThis;
const CLOSED = { code: ENDED, text: "the client is closed" };

/** @param {any} problem */
const failure = (problem) => new QueuecastError(problem);

/**
 * Return a client of the gateway at a base URL; it connects with the first subscription.
 * @param {string | URL} [base] the gateway that served this module if it is left out
 * @param {Options} [options]
 */
export function connect(base = new URL(".", import.meta.url), options = {}) {
  const {
    transports = ["websocket", "sse", "poll"], storage, retry = 500, patience = LONGEST,
  } = options;
  const root = new URL(`${base}`.replace(/\/?$/, "/"), scope.document?.baseURI);
  /** @param {string} path */
  const below = (path) => new URL(path, root);
  const page = Math.random().toString(36).slice(2);
  /** @type {Map<string, Interest>} */
  const interests = new Map();
  /** @type {Map<string, {command: any, settle: (problem?: any) => void}>} */
  const publishes = new Map();
  /** @type {State} */ let state = WAITING;
  /** @type {any} */ let link = null;
  /** @type {any} */ let timer = 0;
  /** @type {any} */ let watch = 0;
  let quiet = 0, count = 0, choice = 0, failures = 0, spare = 0;

  const transport = () => transports[choice % transports.length];
  /** @param {Interest} interest */
  const key = ({ name }) => `queuecast ${root} ${name}`;

  /** @param {State} now */
  function become(now) {
    if (state === now) return;
    state = now;
    options.state?.(now, transport());
  }

  function open() {
    clearTimeout(timer);
    timer = 0;
    if (link || state === ENDED || !interests.size) return;
    become(CONNECTING);
    quiet = 0;
    alive(OPEN_WITHIN);
    link = LINKS[transport()]();
  }

  // In a turn of its own: what a page subscribes to at once goes into one connection.
  function soon(wait = 0) {
    clearTimeout(timer);
    timer = setTimeout(open, wait);
  }

  function opened() {
    failures = 0;
    spare = 1;
    become(OPEN);
    for (const { command } of publishes.values()) say(command);
  }

  /** Something came. @param {number} [within] milliseconds until something must come again */
  function alive(within = quiet) {
    clearTimeout(watch);
    if (within) watch = setTimeout(lost, within);
  }

  /** @param {number} seconds between two heartbeats of the gateway */
  function beat(seconds) {
    quiet = seconds * 2500;
    alive();
    if (state !== OPEN) opened();
  }

  function drop() {
    const old = link;
    link = null;
    clearTimeout(watch);
    old?.close();
  }

  // One that never opened gives way to the next transport, if there is a gateway to be reached. One
  // that did before may fail once more: the gateway may have come back in between.
  function lost() {
    if (state === ENDED) return;
    if (state === CONNECTING) {
      const next = choice + 1;
      fetch(below("readyz"), { mode: "no-cors" })
        .then(({ status }) => { if (status < 500 && !link && --spare < 0) choice = next; }, () => {});
    }
    drop();
    soon(Math.min(LONGEST, retry * 2 ** failures++) * (0.5 + Math.random() / 2));
    become(WAITING);
  }

  /** The gateway refused a subscription. @param {Interest | undefined} interest @param {any} why */
  function refused(interest, why) {
    if (!interest || interests.get(interest.name) !== interest) return;
    interests.delete(interest.name);
    for (const user of interest.users) user.options.error?.(failure(why));
  }

  /** How a subscription begins, or goes on. @param {Interest} interest */
  const wish = ({ queue, at, first: { since, last, ack, prefetch, binary } }) =>
    // The gateway looks at `last` only where there is no `since`.
    queue ? { ack, prefetch, binary } : { since: at || since, last, binary };

  /** @param {Interest | undefined} interest @param {string} [position] */
  function moved(interest, position) {
    if (!interest || interest.queue || !position) return;
    interest.at = position;
    storage?.setItem(key(interest), position);
  }

  /** @param {Interest | undefined} interest @param {any} said a message or a gap */
  function receive(interest, { gap, ack, position, body, base64, ...rest }) {
    if (!interest) return;
    /** @param {any} command */
    const settle = async (command) => {
      if (!ack) throw failure({ code: "bad_request", text: "it needs no ack" });
      if (!link?.send?.(command)) await post("ack", command);
    };
    const data = body ?? Uint8Array.from(atob(base64 ?? ""), (char) => char.charCodeAt(0));
    // First who listens, then the position: a reload in between repeats and does not skip.
    for (const { on, options } of [...interest.users]) {
      try {
        if (gap) options.gap?.(gap);
        else {
          on({
            ...rest, position, body: data,
            json: () => JSON.parse(body ?? new TextDecoder().decode(data)),
            ack: () => settle({ ack }),
            nack: (requeue = true) => settle({ nack: ack, requeue }),
          });
        }
      } catch (error) {
        // The page's own: it is told, the other listeners and the connection go on.
        setTimeout(() => { throw error; });
      }
    }
    moved(interest, position);
  }

  /** @param {string} path @param {any} body */
  async function post(path, body) {
    const answer = await fetch(below(path), {
      method: "POST", credentials: "include", body: JSON.stringify(body),
      headers: { "Content-Type": JSON_TYPE },
    });
    if (!answer.ok) throw failure(await answer.json());
  }

  /** @param {any} command */
  async function say(command) {
    const { publish: destination, id, ...message } = command;
    if (link?.send?.(command)) return;
    const { settle } = publishes.get(id) ?? {};
    try {
      await post("publish", { messages: [{ destination, ...message }] });
      settle?.();
    } catch (error) {
      // Without an answer it is said again, as soon as there is a connection.
      if (error instanceof QueuecastError && !error.retry) settle?.(error);
      else if (publishes.has(id)) setTimeout(() => publishes.has(id) && say(command), retry * 2);
    }
  }

  function websocket() {
    const url = below("ws?envelope=json");
    url.protocol = url.protocol.replace("http", "ws");
    const socket = new WebSocket(url);
    /** @param {any} command */
    const send = (command) => {
      if (socket.readyState !== 1) return false;
      socket.send(JSON.stringify(command));
      return true;
    };
    /** @param {Interest} interest */
    const subscribe = (interest) => send({ subscribe: interest.name, ...wish(interest) });
    socket.onopen = () => interests.forEach(subscribe);
    socket.onmessage = ({ data }) => {
      alive();
      const said = JSON.parse(data);
      const { error, heartbeat, subscribed, publish, published } = said;
      const interest = interests.get(
        said.subscription ?? subscribed ?? said.subscribe ?? said.unsubscribed);
      if (heartbeat) beat(heartbeat);
      else if (published || publish) publishes.get(said.id ?? published)?.settle(error);
      else if (error?.retry) setTimeout(() => interest?.users.size && subscribe(interest), retry * 4);
      else if (error) refused(interest, error);
      else if (said.headers || said.gap) receive(interest, said);
      else moved(interest, said.position);
    };
    socket.onclose = lost;
    return {
      send,
      subscribe,
      unsubscribe: (/** @type {Interest} */ { name }) => send({ unsubscribe: name }),
      close() {
        socket.onmessage = socket.onclose = null;
        socket.close();
      },
    };
  }

  /**
   * Run `listen` for each connection by URL that the subscriptions need: one with a position
   * cannot share with one that has none, nor can two that begin differently or differ in `binary`.
   * @param {(group: Interest[], signal: AbortSignal) => void} listen
   */
  function byUrl(listen) {
    let stop = new AbortController();
    /** @type {any} */ let again = 0;
    const start = () => {
      stop.abort();
      stop = new AbortController();
      /** @type {Record<string, Interest[]>} */ const groups = {};
      for (const interest of interests.values()) {
        const { queue, at } = interest;
        (groups[at ? `${interest.first.binary}` : JSON.stringify([queue, wish(interest)])] ??= []).push(interest);
      }
      for (const group of Object.values(groups)) listen(group, stop.signal);
    };
    const subscribe = () => {
      clearTimeout(again);
      again = setTimeout(start);
    };
    start();
    return {
      subscribe,
      unsubscribe: subscribe,
      close() {
        clearTimeout(again);
        stop.abort();
      },
    };
  }

  /** @param {string} verb @param {Interest[]} group */
  function address(verb, group) {
    const url = below(verb);
    const query = url.searchParams;
    query.set("envelope", "json");
    for (const { name } of group) query.append("destination", name);
    const wishes = wish(group[0]);
    if (group[0].at) wishes.since = group.map(({ at }) => at).join();
    for (const [name, value] of Object.entries(wishes)) {
      if (value != null) query.set(name, `${value}`);
    }
    return url;
  }

  /** @param {Interest[]} group @param {string[]} positions of its shared ones, in order */
  const movedAll = (group, positions) =>
    group.filter(({ queue }) => !queue).forEach((each, index) => moved(each, positions[index]));

  /** @param {Interest[]} group @param {any} said */
  function hand(group, said) {
    const named = interests.get(said.subscription);
    // A gap that names none may be anyone's.
    for (const each of named ? [named] : said.gap ? group : []) receive(each, said);
  }

  const sse = () => byUrl((group, signal) => {
    const url = address("sse", group);
    const source = new EventSource(url, { withCredentials: true });
    const on = {
      message: (/** @type {any} */ said) => hand(group, said),
      gap: (/** @type {any} */ { subscription, position, ...gap }) =>
        hand(group, { subscription, position, gap }),
      position: (/** @type {any} */ { heartbeat, positions }) => {
        beat(heartbeat);
        movedAll(group, positions);
      },
      disconnect: (/** @type {any} */ why) => {
        if (!why.retry) for (const each of group) refused(each, why);
      },
    };
    for (const [event, handle] of Object.entries(on)) {
      source.addEventListener(event, (/** @type {any} */ { data }) => {
        alive();
        handle(JSON.parse(data));
      }, { signal });
    }
    // Not left to the browser, which would come back with the positions of this very list, and
    // which a proxy's 502 stops for good.
    source.addEventListener("error", async () => {
      source.close();
      if (state === CONNECTING) {
        // It shows no status; the same address tells a script why.
        const why = await fetch(url, {
          signal, credentials: "include", headers: { Accept: JSON_TYPE },
        }).then((answer) => answer.json()).catch(() => ({}));
        if (signal.aborted) return;
        if (why.retry === false) for (const each of group) refused(each, why);
      }
      lost();
    }, { signal });
    signal.addEventListener("abort", () => source.close());
  });

  const poll = () => byUrl(async (group, signal) => {
    let seen = 0, session;
    try {
      while (!signal.aborted) {
        const url = address("poll", group);
        // The first answer comes at once: it shows that this works, and has the positions.
        if (!group[0].at && !seen++) url.searchParams.set("wait", "0");
        if (session) url.searchParams.set("session", session);
        const answer = await fetch(url, { signal, credentials: "include" });
        const said = await answer.json();
        session = said.session;
        if (signal.aborted) return;
        if (!answer.ok) {
          if (said.retry) break;
          for (const each of group) refused(each, said);
          return;
        }
        beat(said.wait);
        for (const each of said.messages) hand(group, each);
        movedAll(group, said.positions);
      }
    } catch (error) {
      if (signal.aborted) return;
    }
    lost();
  });

  const LINKS = { websocket, sse, poll };

  function online() {
    if (state === WAITING) soon();
  }
  scope.addEventListener?.("online", online);

  return {
    get state() { return state; },
    get transport() { return transport(); },

    /**
     * Call `on` for every message of a destination: from the stored position, else as asked.
     * @param {string} destination @param {User["on"]} on
     * @param {SubscribeOptions} [options]
     * @returns {Subscription}
     */
    subscribe(destination, on, options = {}) {
      if (state === ENDED) throw failure(CLOSED);
      // As the gateway writes it in its answers.
      const name = destination.split("/").map((part) =>
        decodeURIComponent(part).replace(/[/%\x00-\x1f\x7f]/g, encodeURIComponent)).join("/");
      const user = { on, options };
      let interest = interests.get(name);
      if (!interest) {
        interest = {
          name, first: options, at: "", users: new Set(),
          queue: !/^\/(topic|exchange)\//.test(name),
        };
        interest.at = storage?.getItem(key(interest)) ?? "";
        interests.set(name, interest);
        if (link) link.subscribe(interest);
        else if (!timer) soon();
      }
      interest.users.add(user);
      const mine = interest;
      return {
        get position() { return mine.at; },
        close() {
          if (!mine.users.delete(user) || mine.users.size || interests.get(name) !== mine) return;
          interests.delete(name);
          link?.unsubscribe(mine);
        },
      };
    },

    /**
     * Publish; resolves once the broker has taken responsibility. Said again after a lost
     * connection, with the same idempotency key: it is published once.
     * @param {string} destination @param {any} body text, bytes, or any JSON value
     * @param {Record<string, any>} [headers] `content-type`, `priority`, …, or your own
     * @returns {Promise<void>}
     */
    publish(destination, body, headers) {
      const id = `${page}-${++count}`;
      const content = body instanceof Uint8Array
        ? { base64: btoa(Array.from(body, (byte) => String.fromCharCode(byte)).join("")) }
        : { body };
      return new Promise((resolve, reject) => {
        const late = setTimeout(() => settle({
          code: "outcome_unknown", text: "no answer in time", retry: true,
        }), patience);
        /** @param {any} [problem] */
        const settle = (problem) => {
          clearTimeout(late);
          publishes.delete(id);
          problem ? reject(failure(problem)) : resolve();
        };
        const command = {
          publish: destination, ...content, id, headers: { ...headers, "idempotency-key": id },
        };
        publishes.set(id, { command, settle });
        say(command);
      });
    },

    /** End everything; stored positions stay. */
    close() {
      drop();
      clearTimeout(timer);
      scope.removeEventListener?.("online", online);
      interests.clear();
      for (const { settle } of publishes.values()) settle(CLOSED);
      become(ENDED);
    },
  };
}
