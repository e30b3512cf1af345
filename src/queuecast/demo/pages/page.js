// What all pages share: the gateway's own address in what can be pasted, colours and a copy
// button for the code, and the state of a connection.

const here = new URL(document.body.dataset.root || ".", document.baseURI).href.replace(/\/$/, "");

for (const pre of document.querySelectorAll("pre")) {
  pre.tabIndex = 0;
  pre.textContent = pre.textContent.replaceAll("http://127.0.0.1:15674", here);
  const text = pre.textContent;
  paint(pre, text);
  const caption = pre.closest("figure")?.querySelector("figcaption");
  if (!caption || !navigator.clipboard) continue;
  const button = document.createElement("button");
  button.className = "plain";
  button.textContent = "Copy";
  button.addEventListener("click", async () => {
    await navigator.clipboard.writeText(text);
    button.textContent = "Copied";
    setTimeout(() => { button.textContent = "Copy"; }, 1500);
  });
  caption.append(button);
}

function paint(pre, text) {
  const comment = pre.dataset.language === "js" ? "(?<![:\"])\\/\\/.*" : "(?<=^|\\s)#.*";
  const words = "import|export|from|function|const|let|return|if|new|async|await|def|with|class|for|in";
  const token = new RegExp(`(${comment})|("[^"\\n]*"|'[^'\\n]*')|\\b(${words})\\b`, "gm");
  const plainWords = pre.dataset.language === "sh";
  const parts = [];
  let from = 0;
  for (const found of text.matchAll(token)) {
    if (found[3] && plainWords) continue;
    const span = document.createElement("span");
    span.className = found[1] ? "c" : found[2] ? "s" : "k";
    span.textContent = found[0];
    parts.push(text.slice(from, found.index), span);
    from = found.index + found[0].length;
  }
  pre.replaceChildren(...parts, text.slice(from));
}

export function status(element, state, text) {
  element.dataset.state = state;
  if (element.textContent !== text) element.textContent = text;
}

export function newId() {
  const bytes = crypto.getRandomValues(new Uint8Array(8));
  return Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
}

// A gap in words: the gateway tells what it knows to be missed, and never hides it.
export function gapText(gap) {
  const known = {
    unretained: "Nothing earlier is kept for this destination: from here on it is live.",
    evicted: "Some messages were missed: more came meanwhile than is kept.",
    epoch: "Some messages may have been missed: the gateway began anew meanwhile.",
  };
  return known[gap.reason] ?? `Some messages were missed: ${gap.reason}.`;
}
