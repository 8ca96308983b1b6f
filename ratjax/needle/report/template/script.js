"use strict";
document.documentElement.classList.add("scripted");

function make(name, properties, ...children) {
  const node = Object.assign(document.createElement(name), properties);
  node.append(...children);
  return node;
}

/* Charts: the numbers of a budget appear beside the pointer at once, not after the browser's wait. */
{
  const tip = make("div", { id: "tip", hidden: true });
  document.body.append(tip);
  for (const area of document.querySelectorAll(".hit")) {
    const title = area.querySelector("title");
    const text = title.textContent;
    title.remove();
    area.addEventListener("pointermove", (event) => {
      tip.textContent = text;
      tip.hidden = false;
      const box = tip.getBoundingClientRect();
      const right = event.clientX + 16 + box.width < innerWidth;
      const left = right ? event.clientX + 16 : event.clientX - box.width - 16;
      tip.style.left = Math.max(4, left) + "px";
      tip.style.top = Math.max(4, Math.min(event.clientY + 14, innerHeight - box.height - 4)) + "px";
    });
    area.addEventListener("pointerleave", () => { tip.hidden = true; });
  }
  addEventListener("scroll", () => { tip.hidden = true; }, { passive: true });
}

/* Tables: headings sort, and a section's selects filter its table. */
for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0];
  const rows = [...body.rows];

  function key(cell) {
    if (cell.dataset.value !== undefined) return Number(cell.dataset.value);
    const text = cell.textContent.trim();
    if (text === "\u2013") return "";
    const plain = text.replace(/\u2212/g, "-").replace(/[\u202f\[+\u00b1 ]/g, "");
    const number = parseFloat(plain);
    return Number.isNaN(number) ? text : number;
  }

  function compare(a, b) {
    if (typeof a === "number" && typeof b === "number") return a - b;
    return String(a).localeCompare(String(b), undefined, { numeric: true });
  }

  [...table.tHead.rows[0].cells].forEach((heading, column) => {
    const button = make("button", { type: "button" }, ...heading.childNodes);
    heading.replaceChildren(button);
    button.addEventListener("click", () => {
      const down = heading.getAttribute("aria-sort") === "ascending";
      for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
      heading.setAttribute("aria-sort", down ? "descending" : "ascending");
      const keyed = rows.map((row) => [key(row.cells[column]), row]);
      keyed.sort(([a], [b]) => {
        /* Empty cells stay below, whichever way the others go. */
        if (a === "" || b === "") return (a === "") - (b === "");
        return down ? compare(b, a) : compare(a, b);
      });
      body.append(...keyed.map(([, row]) => row));
    });
  });

  const section = table.closest("section");
  const filters = [...section.querySelectorAll("[data-filter]")];
  const status = section.querySelector(".count");
  function apply() {
    let shown = 0;
    for (const row of rows) {
      row.hidden = filters.some((f) => f.value && row.dataset[f.dataset.filter] !== f.value);
      shown += !row.hidden;
    }
    status.textContent = shown === rows.length ? `${shown} rows` : `${shown} of ${rows.length} rows`;
  }
  for (const filter of filters) filter.addEventListener("change", apply);
}

/* Answers: one prompt at a time, every backbone's answer beside it. */
{
  const view = document.getElementById("answers-view");
  const source = document.getElementById("answers-data");
  if (view && source) browse(view, JSON.parse(source.textContent));
}

function browse(view, data) {
  const state = { group: 0, setting: data.groups[0].first, task: 0, backbone: -1, only: "all", at: "" };
  const cells = new Map(data.cells.map(([g, s, t, b, found]) => [`${g}/${s}/${t}/${b}`, found]));
  const controls = make("div", { className: "controls" });
  const strip = make("ul", { className: "strip" });
  strip.setAttribute("aria-label", "Prompts");
  const detail = make("div", { className: "answer" });
  const key = make("p", { className: "note" });
  view.append(controls, key, strip, detail);

  function choice(title, name, options, numeric = true) {
    const select = make("select", {});
    for (const [value, text] of options) select.append(make("option", { value, textContent: text }));
    select.value = String(state[name]);
    select.addEventListener("change", () => {
      state[name] = numeric ? Number(select.value) : select.value;
      if (name === "group") Object.assign(state, { setting: group().first, task: 0, backbone: -1 });
      render();
      controls.querySelector(`[data-name="${name}"]`).focus();
    });
    select.dataset.name = name;
    controls.append(make("label", {}, `${title} `, select));
  }

  const group = () => data.groups[state.group];
  const found = (backbone) =>
    cells.get(`${state.group}/${state.setting}/${state.task}/${backbone}`) || [];
  const full = (answer) => answer[4] >= 1;

  /* A prompt with the answers of the backbones in view, [key, label, Map backbone -> answer]. */
  function entries() {
    const rows = new Map();
    group().backbones.forEach((_, backbone) => {
      if (state.backbone >= 0 && state.backbone !== backbone) return;
      for (const answer of found(backbone)) {
        const key = `${answer[0]}|${answer[1]}|${answer[2]}`;
        const label = `${answer[1]}${answer[2] ? ` (${answer[2]})` : ""}`;
        if (!rows.has(key)) rows.set(key, [key, label, new Map()]);
        rows.get(key)[2].set(backbone, answer);
      }
    });
    return [...rows.values()].filter(([, , answers]) => {
      const outcomes = [...answers.values()].map((answer) => answer[4]);
      if (state.only === "wrong") return outcomes.some((strict) => strict < 1);
      if (state.only === "differ") return new Set(outcomes).size > 1;
      return true;
    });
  }

  function render() {
    controls.replaceChildren();
    if (data.groups.length > 1) choice("Context", "group", data.groups.map((g, i) => [i, g.label]));
    const used = (level) => new Set(data.cells.filter((c) => c[0] === state.group).map((c) => c[level]));
    const settings = used(1), tasks = used(2);
    if (!settings.has(state.setting)) state.setting = [...settings][0];
    if (!tasks.has(state.task)) state.task = [...tasks][0];
    choice("Setting", "setting", group().settings.map((s, i) => [i, s]).filter(([i]) => settings.has(i)));
    choice("Task", "task", group().tasks
      .map(([, short, note], i) => [i, note ? `${short}: ${note}` : short])
      .filter(([i]) => tasks.has(i)));
    const names = group().backbones;
    if (names.length > 1) choice("Backbone", "backbone", [[-1, "all"], ...names.map((b, i) => [i, b])]);
    const filters = [["all", "all prompts"], ["wrong", "a wrong answer"]];
    if (names.length > 1) filters.push(["differ", "scores that differ"]);
    choice("Show", "only", filters, false);
    const inView = state.backbone < 0 ? names : [names[state.backbone]];
    key.textContent = `Prompts by index; \u2713 right, \u00bd partly, \u2717 wrong`
      + (inView.length > 1 ? `; in each, from the left: ${inView.join(", ")}.` : ".");
    const shown = entries();
    if (!shown.some(([key]) => key === state.at)) state.at = shown.length ? shown[0][0] : "";
    strip.replaceChildren(...shown.map((entry) => make("li", {}, tile(entry))));
    const current = shown.find(([key]) => key === state.at);
    detail.replaceChildren(...(current ? describe(current) : [make("p", { className: "note" }, "No such prompt here.")]));
    const box = detail.querySelector(".prompt");
    const first = detail.querySelector("mark");
    if (box && first) box.scrollTop = first.offsetTop - box.offsetTop - box.clientHeight / 3;
  }

  function tile([key, label, answers]) {
    const button = make("button", { type: "button" }, label);
    for (const [backbone, answer] of answers) {
      const name = group().backbones[backbone];
      const verdict = full(answer) ? "right" : answer[4] > 0 ? "partly right" : "wrong";
      const sign = make("span", { className: full(answer) ? "yes" : "no", title: `${name}: ${verdict}` },
        full(answer) ? "\u2713" : answer[4] > 0 ? "\u00bd" : "\u2717");
      sign.setAttribute("aria-label", `${name} ${verdict}`);
      sign.setAttribute("role", "img");
      button.append(sign);
    }
    button.setAttribute("aria-pressed", String(key === state.at));
    button.addEventListener("click", () => {
      state.at = key;
      render();
      strip.querySelector('[aria-pressed="true"]').focus();
    });
    return button;
  }

  function describe([, , answers]) {
    const [prompt, gold] = data.prompts[[...answers.values()][0][0]];
    const left = prompt === null
      ? make("p", { className: "note" }, "The prompt was not recorded.")
      : make("pre", { className: "prompt", tabIndex: 0 }, ...highlighted(prompt, gold));
    left.setAttribute("aria-label", "Prompt");
    const right = make("div", {});
    for (const [backbone, answer] of answers) {
      const said = new Set(answer[3].split(",").map((part) => part.trim()));
      const title = make("h4", {}, marker(group().backbones[backbone]),
        `${group().backbones[backbone]}: ${(100 * answer[4]).toFixed(0)} of 100`);
      const list = make("ul", {}, ...gold.map((text) => make("li", { className: said.has(text) ? "yes" : "no" },
        `${said.has(text) ? "\u2713" : "\u2717"} ${text}`)));
      right.append(make("div", { className: "said" }, title, make("code", {}, answer[3] || "(nothing)"), list));
    }
    return [left, right];
  }

  render();

  /* The headline's own swatch, so that marks mean the same everywhere. */
  function marker(backbone) {
    const swatch = document.querySelector(`[data-swatch="${CSS.escape(backbone)}"] .swatch`);
    return swatch ? swatch.cloneNode(true) : "";
  }
}

/* Every answer in the prompt underlined, inside its sentence marked. */
function highlighted(prompt, gold) {
  const hits = [];
  const inside = /[\p{L}\p{N}]/u;
  for (const answer of gold) {
    for (let at = prompt.indexOf(answer); answer && at >= 0; at = prompt.indexOf(answer, at + answer.length)) {
      const before = prompt.slice(0, at);
      const rest = prompt.slice(at + answer.length);
      if (inside.test(before.slice(-1)) || inside.test(rest.slice(0, 1))) continue;
      const starts = ["\n", ". ", "? "].map((mark) => {
        const found = before.lastIndexOf(mark);
        return found < 0 ? 0 : found + mark.length;
      });
      const stop = rest.search(/[.\n]/);
      const end = stop < 0 ? prompt.length : at + answer.length + stop + (rest[stop] === "." ? 1 : 0);
      hits.push({ start: Math.max(...starts), at, length: answer.length, end });
    }
  }
  hits.sort((a, b) => a.at - b.at);
  const parts = [];
  let done = 0;
  for (const hit of hits) {
    if (hit.at < done) continue;
    const start = Math.max(hit.start, done);
    const end = Math.max(hit.end, hit.at + hit.length);
    parts.push(prompt.slice(done, start));
    parts.push(make("mark", {}, prompt.slice(start, hit.at),
      make("b", {}, prompt.slice(hit.at, hit.at + hit.length)), prompt.slice(hit.at + hit.length, end)));
    done = end;
  }
  parts.push(prompt.slice(done));
  return parts;
}
