"use strict";
// data: texts, files (model, task, seed, kind), items (file, text, id, gold, predicted, errors, scores, second, choices).
// What others wrote becomes text nodes only. Offsets count characters as Python does, not as JavaScript.
const data = JSON.parse(document.getElementById("data").textContent);
const AT_ONCE = 100;
const byId = name => document.getElementById(name);
const filters = ["task", "model", "seed", "label", "kind"].map(byId);
let shown = AT_ONCE;

function element(tag, className, ...children) {
  const made = document.createElement(tag);
  if (className) made.className = className;
  made.append(...children);
  return made;
}

function fill(select, values) {
  for (const value of [...new Set(values)].sort()) {
    const option = element("option", "", value);
    option.value = value;
    select.append(option);
  }
}

const labelsOf = item => [...item.gold, ...item.predicted].map(answer => answer.label);
fill(byId("task"), data.files.map(file => file.task));
fill(byId("model"), data.files.map(file => file.model));
fill(byId("seed"), data.files.map(file => String(file.seed)));
fill(byId("label"), data.items.flatMap(labelsOf));

// The errors of an item that the filters ask for, or null where it is not to be shown.
function asked(item) {
  const [task, model, seed, label, kind] = filters.map(select => select.value), file = data.files[item.file];
  const words = byId("words").value.toLowerCase();
  if ((task && file.task !== task) || (model && file.model !== model) || (seed && String(file.seed) !== seed)) return null;
  if (words && !data.texts[item.text].toLowerCase().includes(words)) return null;
  if (kind === "right")
    return item.errors.length || (label && !labelsOf(item).includes(label)) ? null : [];
  const errors = item.errors.filter(error => (!kind || error.kind === kind)
    && (!label || error.gold === label || error.predicted === label));
  return errors.length ? errors : null;
}

// A text with its answers marked: cut wherever one begins or ends, each named after its last character.
function marked(text, answers) {
  const characters = Array.from(text), line = element("p", "text");
  const cuts = new Set([0, characters.length, ...answers.flatMap(answer => answer.ranges.flat())]);
  const places = [...cuts].sort((a, b) => a - b);
  places.slice(1).forEach((end, number) => {
    const start = places[number], piece = characters.slice(start, end).join("");
    const over = answers.filter(answer => answer.ranges.some(([from, to]) => from <= start && end <= to));
    const worst = ["missed", "invented", "type", "boundary", "right"].find(kind => over.some(answer => answer.kind === kind));
    line.append(over.length ? element("mark", worst, piece) : piece);
    for (const answer of answers)
      if (answer.ranges.at(-1)[1] === end) line.append(element("sub", answer.kind, answer.label));
  });
  return line;
}

function answers(item, side) {
  const named = item[side].map(answer => ({ ...answer, ranges: answer.ranges || [] }));
  const box = element("div", "side", element("b", "", side === "gold" ? "gold" : "predicted"));
  const ofText = named.filter(answer => !answer.ranges.length);
  box.append(marked(data.texts[item.text], named.filter(answer => answer.ranges.length)));
  if (ofText.length) box.append(element("p", "", ...ofText.map(answer => element("code", answer.kind, answer.label))));
  if (side === "predicted" && item.scores) {
    const best = Object.entries(item.scores).sort((a, b) => b[1] - a[1]).slice(0, 10);
    box.append(element("p", "soft", best.map(([label, score]) => `${label} ${score.toFixed(3)}`).join(", ")));
  }
  return box;
}

function article(item) {
  const file = data.files[item.file];
  const head = element("h3", "", `${file.task}, ${item.id} `, element("span", "soft", `${file.model}, seed ${file.seed}`));
  const made = element("article", "", head, element("div", "sides", answers(item, "gold"), answers(item, "predicted")));
  if (item.second) made.append(element("p", "text soft", item.second));
  item.choices.forEach((choice, number) => made.append(element("p", "text soft", `${number}: ${choice}`)));
  return made;
}

function confusions(errors) {
  const counts = new Map();
  for (const error of errors) {
    const key = JSON.stringify([error.kind, error.gold || "–", error.predicted || "–"]);
    counts.set(key, (counts.get(key) || 0) + 1);
  }
  const most = [...counts].sort((a, b) => b[1] - a[1]).slice(0, 20);
  byId("confusions").replaceChildren(...most.map(([key, count]) => element("tr", "",
    ...JSON.parse(key).map(cell => element("td", "", cell)), element("td", "number", String(count)))));
}

function show() {
  const chosen = data.items.map(item => [item, asked(item)]).filter(([, errors]) => errors);
  byId("count").textContent = `${chosen.length} of ${data.items.length} texts`;
  confusions(chosen.flatMap(([, errors]) => errors));
  byId("items").replaceChildren(...chosen.slice(0, shown).map(([item]) => article(item)));
  byId("more").hidden = chosen.length <= shown;
}

for (const filter of [...filters, byId("words")])
  filter.addEventListener("input", () => { shown = AT_ONCE; show(); });
byId("more").addEventListener("click", () => { shown += AT_ONCE; show(); });
show();
