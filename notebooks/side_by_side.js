// Which scripts to show, what to fold, and the keys n and p. Without this script the page shows everything.
const all = (what, within = document) => [...within.querySelectorAll(what)];
const root = document.documentElement;
const shown = (element) => element.getClientRects().length > 0;
const boxes = all("input[name=script]");
const FOLDED = 8;  // lines at least that are the same, one after another, to be folded away at first
const MOST = 3;  // scripts at once
let order = boxes.filter((box) => box.checked).map((box) => box.value);  // in which they were chosen

function choose(values) {
  order = values.slice(-MOST);
  for (const box of boxes) box.checked = order.includes(box.value);
  const scripts = boxes.filter((box) => box.checked).map((box) => box.value);
  const isOf = (part) => part.dataset.script.split("-").some((script) => scripts.includes(script));
  for (const part of all("[data-script]")) part.hidden = !isOf(part);
  for (const wide of all("th[colspan]")) wide.colSpan = scripts.length;
  let lines = 0;
  let said = "";  // why the lines right above differ
  for (const body of all("tbody:not(.fold)")) {
    const cells = all("td[data-line]", body).filter((cell) => !cell.hidden);
    const kinds = body.dataset.kinds?.split(" ") ?? [];
    const differs = new Set(scripts.map((script) => kinds[script])).size > 1;
    const note = body.querySelector(".why");
    const whys = note ? all("span", note).filter((span) => !span.hidden) : [];
    const concept = whys.length ? whys[0].dataset.concept : "not explained";
    const why = whys.map((span) => span.textContent).join(" ");
    body.className = differs ? `differs ${concept.replace(/\W+/g, "-")}` : "";
    if (!body.previousElementSibling.matches("tbody")) said = "";
    if (note) {
      note.hidden = !differs || why === said;
      note.querySelector("a").textContent = concept;
    }
    if (cells.length) said = differs ? why : "";
    lines += differs ? cells.filter((cell) => cell.textContent.trim()).length : 0;
  }
  for (const row of all("tbody tr:not(.why)")) row.hidden = !all("td[data-line]", row).some((cell) => !cell.hidden);
  all("section").forEach(fold);
  for (const section of all("section")) section.querySelector(".same").hidden = !isSame(section, scripts);
  const places = all(".why:not([hidden])").length;
  document.getElementById("count").textContent = scripts.length > 1 ? `${lines} lines differ, in ${places} places.` : "Choose another one.";
}

// Whether a step is the same to the byte in the scripts.
function isSame(section, scripts) {
  const texts = scripts.map((script) => {
    const lines = all(`td[data-script="${script}"][data-line] code`, section);
    return lines.map((line) => line.textContent).join("\n");
  });
  return new Set(texts).size === 1;
}

// Folds away each stretch that is the same, if it is long, behind a button.
function fold(section) {
  for (const old of all("tbody.fold", section)) old.remove();
  let stretch = [];
  const end = () => {
    const rows = stretch.flatMap((body) => all("tr:not([hidden])", body));
    for (const body of stretch) body.classList.remove("folded");
    if (rows.length >= FOLDED) foldStretch(stretch, rows.length);
    stretch = [];
  };
  for (const body of all("tbody", section)) {
    if (body.classList.contains("differs")) end();
    else stretch.push(body);
  }
  end();
}

function foldStretch(bodies, n) {
  const button = document.createElement("button");
  button.type = "button";
  button.textContent = `${n} lines, the same in all of these`;
  const set = (folded) => {
    button.setAttribute("aria-expanded", !folded);
    for (const body of bodies) body.classList.toggle("folded", folded);
  };
  button.addEventListener("click", () => set(button.getAttribute("aria-expanded") === "true"));
  set(true);
  const body = document.createElement("tbody");
  body.className = "fold";
  const cell = body.insertRow().appendChild(document.createElement("th"));
  cell.colSpan = order.length;
  cell.append(button);
  bodies[0].before(body);
}

function go(by) {
  const stops = all(".differs .why a").filter(shown);
  const here = document.activeElement;
  const after = (stop) => here === document.body
    ? stop.getBoundingClientRect().top > 0  // nothing has the focus: below what is on top of the window
    : here.compareDocumentPosition(stop) & Node.DOCUMENT_POSITION_FOLLOWING;
  const next = by > 0 ? stops.find(after) : stops.findLast((stop) => stop !== here && !after(stop));
  next?.focus();
}

root.classList.add("js");
document.getElementById("unfold").addEventListener("click", () => {
  for (const button of all(".fold [aria-expanded=false]")) button.click();
});
for (const box of boxes) {
  box.addEventListener("change", () => choose([...order.filter((value) => value !== box.value), ...(box.checked ? [box.value] : [])]));
}
for (const edge of all("button[data-pair]")) edge.addEventListener("click", () => choose(edge.dataset.pair.split("-")));
document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || !document.getElementById("keys").checked) return;
  if (event.key === "n") go(1);
  if (event.key === "p") go(-1);
});
choose(order);
