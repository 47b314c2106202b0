"use strict";
/* The page's own behaviour: the tree of files, one file's story, what happens in a view. All text of files goes
   through textContent, or comes as HTML from the program's templates, which escape it. */

const embedded = JSON.parse(document.getElementById("embedded")?.textContent ?? "null");
const tree = document.getElementById("tree");
const detail = document.getElementById("detail");
const treeNote = document.getElementById("tree-note");
const live = document.body.dataset.kind === "mount";

/* --- where data comes from: the server, or this file --- */

async function asked(address) {
  const answer = await fetch(address);
  if (!answer.ok) throw new Error((await answer.text()).trim());
  return answer;
}

const server = {
  tree: async (key) => (await asked(`tree?path=${key}`)).json(),
  search: async (words) => (await asked(`search?words=${encodeURIComponent(words)}`)).json(),
  story: async (key) => (await asked(`file?path=${key}`)).text(),
};

const file = {
  tree: async (key) => ({ rows: embedded.trees[key] ?? [], left_out: embedded.trees[key] ? 0 : 1 }),
  search: async (words) => {
    const wanted = words.toLowerCase();
    const all = Object.values(embedded.trees).flat();
    const rows = all.filter((row) => shownPath(row).toLowerCase().includes(wanted));
    rows.sort((one, other) => (one.key < other.key ? -1 : 1));
    return { rows: rows.slice(0, 100), left_out: Math.max(0, rows.length - 100) };
  },
  story: async (key) => {
    if (embedded.stories[key] !== undefined) return embedded.stories[key];
    throw new Error("What the layers say about this path was left out of this file to limit its size.");
  },
};

const source = embedded ? file : server;

/* --- the tree --- */

function shownPath(row) {
  const above = row.key.slice(0, row.key.lastIndexOf("/") + 1);
  try { return decodeURIComponent(above) + row.name; } catch { return above + row.name; }
}

function layerName(key) { return key === "upper" ? "the upper" : key === "data" ? "a data layer" : `layer ${key}`; }

function badge(key, extra = "") {
  const made = document.createElement("span");
  made.className = `badge tone-${key === "upper" ? "upper" : Number(key) % 8 || 0} ${extra}`;
  made.textContent = key === "upper" ? "upper" : key;
  return made;
}

function size(bytes) {
  const units = ["B", "kB", "MB", "GB", "TB"];
  let unit = 0;
  while (bytes >= 1000 && unit < units.length - 1) { bytes /= 1000; unit += 1; }
  return `${Number(bytes.toPrecision(3))}${units[unit]}`;
}

function span(name, text) {
  const made = document.createElement("span");
  made.className = name;
  made.textContent = text;
  return made;
}

function treeItem(row, whole = false) {
  const item = document.createElement("li");
  item.setAttribute("role", "treeitem");
  item.setAttribute("aria-selected", "false");
  item.tabIndex = -1;
  item.dataset.key = row.key;
  const gone = row.hidden_by !== null;
  const name = whole ? shownPath(row) : row.name;
  const state = gone ? `not visible, ${row.hidden_by ? `hidden by ${layerName(row.hidden_by)}` : "hidden"}` : `from ${layerName(row.layer)}`;
  item.setAttribute("aria-label", `${name}, ${row.kind}${row.kind === "file" ? `, ${size(row.size)}` : ""}, ${state}`);
  item.classList.toggle("gone", gone);
  const line = document.createElement("div");
  line.className = "row";
  const directory = row.kind === "directory";
  line.append(span("twist", directory ? "▸" : ""), span("name", directory ? `${name}/` : name));
  if (row.kind === "file") line.append(span("size", size(row.size)));
  line.append(badge(row.layer));
  if (gone && row.hidden_by) line.append("✕", badge(row.hidden_by, "takes"));
  item.append(line);
  if (directory) item.setAttribute("aria-expanded", "false");
  return item;
}

function fill(list, found, whole = false) {
  list.replaceChildren(...found.rows.map((row) => treeItem(row, whole)));
  tellOfMore(list, found.left_out);
}

function tellOfMore(list, count) {
  if (!count) return;
  const more = document.createElement("li");
  more.className = "note";
  more.setAttribute("role", "none");
  more.textContent = `and ${count} more, not shown`;
  list.append(more);
}

async function expand(item) {
  let group = item.querySelector(":scope > ul");
  if (!group) {
    group = document.createElement("ul");
    group.setAttribute("role", "group");
    item.append(group);
  }
  const found = await source.tree(item.dataset.key);
  item.setAttribute("aria-expanded", "true");
  item.querySelector(":scope > .row > .twist").textContent = "▾";
  fill(group, found);
}

function collapse(item) {
  item.setAttribute("aria-expanded", "false");
  item.querySelector(":scope > .row > .twist").textContent = "▸";
  item.querySelector(":scope > ul")?.remove();
}

function items() { return [...tree.querySelectorAll('[role="treeitem"]')]; }

function settle(item, focus = true) {
  for (const one of items()) one.tabIndex = -1;
  item.tabIndex = 0;
  if (focus) item.focus();
}

function complain(error) { treeNote.textContent = error.message; }

async function toggle(item) {
  if (item.getAttribute("aria-expanded") === "true") collapse(item);
  else if (item.hasAttribute("aria-expanded")) await expand(item);
}

tree.addEventListener("click", (event) => {
  const item = event.target.closest('[role="treeitem"]');
  if (!item) return;
  settle(item);
  choose(item);
});

async function choose(item) {
  tree.querySelector('[aria-selected="true"]')?.setAttribute("aria-selected", "false");
  item.setAttribute("aria-selected", "true");
  await Promise.all([toggle(item).catch(complain), tell(item.dataset.key)]);
}

tree.addEventListener("keydown", (event) => {
  const item = event.target.closest('[role="treeitem"]');
  if (!item || event.altKey || event.ctrlKey || event.metaKey) return;
  const all = items();
  const at = all.indexOf(item);
  const isOpen = item.getAttribute("aria-expanded");
  const moves = {
    ArrowDown: () => all[at + 1] && settle(all[at + 1]),
    ArrowUp: () => all[at - 1] && settle(all[at - 1]),
    Home: () => settle(all[0]),
    End: () => settle(all.at(-1)),
    ArrowRight: () => (isOpen === "false" ? expand(item).catch(complain) : isOpen && all[at + 1] && settle(all[at + 1])),
    ArrowLeft: () => {
      if (isOpen === "true") return collapse(item);
      const above = item.parentElement.closest('[role="treeitem"]');
      if (above) settle(above);
    },
    Enter: () => choose(item),
    " ": () => choose(item),
  };
  if (!moves[event.key]) return;
  event.preventDefault();
  moves[event.key]();
});

/* The names of an open directory anew; what stays the same stays in place, with the focus and what is open in it. */
async function refresh(key) {
  const list = key === "/" ? tree : tree.querySelector(`[data-key="${CSS.escape(key)}"][aria-expanded="true"] > ul`);
  if (!list || searching()) return;
  const found = await source.tree(key);
  const hadFocus = list.contains(document.activeElement);
  const made = found.rows.map((row) => treeItem(row));
  const wanted = new Set(made.map((one) => one.dataset.key));
  const before = new Map();
  for (const one of [...list.children]) {
    if (wanted.has(one.dataset.key)) before.set(one.dataset.key, one);
    else one.remove();
  }
  made.forEach((item, place) => {
    const old = before.get(item.dataset.key);
    const at = list.children[place] ?? null;
    if (old && old.hasAttribute("aria-expanded") === item.hasAttribute("aria-expanded")) update(old, item);
    else {
      item.querySelector(".row").classList.add("fresh");
      old?.remove();
      list.insertBefore(item, old === at ? list.children[place] ?? null : at);
    }
  });
  tellOfMore(list, found.left_out);
  const stop = tree.querySelector('[tabindex="0"]') ?? tree.firstElementChild;
  if (stop) settle(stop, hadFocus && !list.contains(document.activeElement));
}

/* Let an item say what a new one for the same path says. */
function update(old, item) {
  if (old.getAttribute("aria-label") === item.getAttribute("aria-label")) return;
  old.setAttribute("aria-label", item.getAttribute("aria-label"));
  old.classList.toggle("gone", item.classList.contains("gone"));
  const row = item.querySelector(".row");
  row.classList.add("fresh");
  if (old.getAttribute("aria-expanded") === "true") row.querySelector(".twist").textContent = "▾";
  old.querySelector(":scope > .row").replaceWith(row);
}

function openDirectories() {
  return ["/", ...[...tree.querySelectorAll('[aria-expanded="true"]')].map((one) => one.dataset.key)];
}

/* --- searching --- */

const search = document.getElementById("search");
let asking = 0;
let typing;

function searching() { return search.value.trim() !== ""; }

async function showTree() {
  const mine = ++asking;
  const words = search.value.trim();
  treeNote.textContent = "";
  try {
    const found = words ? await source.search(words) : await source.tree("/");
    if (mine !== asking) return;
    fill(tree, found, words !== "");
    if (words) treeNote.textContent = found.rows.length ? `${found.rows.length} found` : `No name contains “${words}”.`;
    if (tree.firstElementChild) settle(tree.firstElementChild, false);
  } catch (error) { complain(error); }
}

search.addEventListener("input", () => { clearTimeout(typing); typing = setTimeout(showTree, 150); });
document.getElementById("search-form").addEventListener("submit", (event) => { event.preventDefault(); showTree(); });

/* --- one file --- */

let shownKey = null;

async function tell(key) {
  shownKey = key;
  try {
    const story = await source.story(key);
    if (shownKey === key) detail.innerHTML = story;
  } catch (error) {
    if (shownKey === key) detail.replaceChildren(Object.assign(document.createElement("p"), { className: "note", textContent: error.message }));
  }
}

document.addEventListener("click", async (event) => {
  const chosen = event.target.closest("button[data-key], .tile[data-key]");
  if (!chosen) return;
  await tell(chosen.dataset.key);
  detail.focus();
  detail.scrollIntoView({ block: "nearest" });
});

/* --- light and dark --- */

const scheme = document.getElementById("scheme");
const prefersDark = matchMedia("(prefers-color-scheme: dark)");
let chosenScheme = null;

function paint() {
  const dark = chosenScheme ? chosenScheme === "dark" : prefersDark.matches;
  document.documentElement.dataset.scheme = dark ? "dark" : "light";
  scheme.textContent = dark ? "Light" : "Dark";
  scheme.setAttribute("aria-label", dark ? "Use light colours" : "Use dark colours");
}

scheme.addEventListener("click", () => {
  chosenScheme = document.documentElement.dataset.scheme === "dark" ? "light" : "dark";
  paint();
});
prefersDark.addEventListener("change", paint);

/* --- what happens in a view --- */

function light(keys) {
  for (const box of document.querySelectorAll(".box.lit")) box.classList.remove("lit");
  const boxes = keys.map((key) => document.getElementById(`box-${key}`)).filter(Boolean);
  for (const box of boxes) box.classList.add("lit");
  clearTimeout(light.timer);
  light.timer = setTimeout(() => boxes.forEach((box) => box.classList.remove("lit")), 2500);
}

/* Scroll the stack, and nothing else, as little as needed: a reader elsewhere on the page stays where they are. */
function bringIntoView(keys) {
  // The upper is touched by every change; the other layer says more.
  const box = document.getElementById(`box-${keys.find((key) => key !== "upper") ?? "upper"}`);
  const stack = document.querySelector(".stack");
  if (!box) return;
  const [inner, outer] = [box.getBoundingClientRect(), stack.getBoundingClientRect()];
  if (inner.top < outer.top || inner.height > outer.height) stack.scrollTop += inner.top - outer.top;
  else if (inner.bottom > outer.bottom) stack.scrollTop += inner.bottom - outer.bottom;
}

async function refreshUpper(fresh) {
  const place = document.getElementById("upper");
  if (!place) return;
  const focused = place.contains(document.activeElement) ? document.activeElement.dataset.key : null;
  place.innerHTML = await (await asked("upper")).text();
  const figures = place.querySelector("[data-size]").dataset;
  const shown = { size: size(Number(figures.size)), entries: figures.entries, whiteouts: figures.whiteouts };
  for (const pair of document.querySelectorAll("#box-upper dl div")) {
    const word = pair.querySelector("dt").textContent;
    pair.querySelector("dd").textContent = shown[word];
    pair.classList.toggle("nothing", ["0", "0B"].includes(shown[word]));
  }
  for (const button of place.querySelectorAll("button[data-key]")) {
    if (fresh.includes(button.dataset.key)) button.closest("li").classList.add("fresh");
    if (button.dataset.key === focused) button.focus();
  }
}

function logged(one) {
  const line = document.createElement("li");
  line.className = one.action ?? "";
  const time = document.createElement("time");
  time.textContent = one.time;
  line.append(time, one.text);
  return line;
}

async function changed(told) {
  const log = document.getElementById("log");
  document.getElementById("log-note").textContent = "";
  for (const one of told.sentences) log.prepend(logged(one));
  while (log.children.length > 200) log.lastElementChild.remove();
  light(told.layers);
  await refreshUpper(told.paths);
  // Now that the upper has its new height.
  bringIntoView(told.layers);
  for (const key of told.directories) await refresh(key);
  if (shownKey && told.paths.includes(shownKey)) await tell(shownKey);
}

function listen() {
  const state = document.getElementById("state");
  const say = (text, name) => { state.textContent = text; state.className = `state ${name}`; };
  const events = new EventSource("events");
  let busy = Promise.resolve();
  events.addEventListener("attached", () => {
    say("live", "live");
    // What happened while nobody listened.
    busy = busy.then(() => Promise.all([refreshUpper([]), ...openDirectories().map(refresh)])).catch(complain);
  });
  events.addEventListener("change", (event) => { busy = busy.then(() => changed(JSON.parse(event.data))).catch(complain); });
  events.addEventListener("ended", (event) => { say(`ended: ${JSON.parse(event.data).why}`, "ended"); events.close(); });
  events.addEventListener("error", () => { if (events.readyState !== EventSource.CLOSED) say("the server does not respond", "ended"); });
}

paint();
showTree().then(() => { if (live) listen(); });
