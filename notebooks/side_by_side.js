// Which scripts to show, what to fold, and the keys n and p. Without this script the page shows everything.
const all = (what, within = document) => [...within.querySelectorAll(what)];
const root = document.documentElement;
const shown = (element) => element.getClientRects().length > 0;

function choose(view) {
  const scripts = view.split("-");
  const isOf = (part) => part.dataset.script.split("-").some((script) => scripts.includes(script));
  for (const part of all("[data-script]")) part.hidden = !isOf(part);
  for (const wide of all("th[colspan]")) wide.colSpan = scripts.length;
  for (const row of all("tbody tr:not(.why)")) {
    const cells = all("td", row);
    row.hidden = cells.length > 0 && !cells.some((cell) => !cell.hidden && cell.dataset.line);
  }
  for (const body of all("tbody[data-differs]")) {
    const differs = body.dataset.differs.split(" ").includes(view);
    body.classList.toggle("differs", differs);
    body.querySelector(".why").hidden = !differs;
  }
  const count = all("tbody.differs").length;
  document.getElementById("count").textContent = `${count} differences.`;
}

function fold(button, folded) {
  button.setAttribute("aria-expanded", !folded);
  document.getElementById(button.getAttribute("aria-controls")).classList.toggle("folded", folded);
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
const folds = all(".fold button");
for (const button of folds) {
  fold(button, true);
  button.addEventListener("click", () => fold(button, button.getAttribute("aria-expanded") === "true"));
}
document.getElementById("unfold").addEventListener("click", () => folds.forEach((button) => fold(button, false)));
for (const input of all("input[name=view]")) input.addEventListener("change", () => choose(input.value));
document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || !document.getElementById("keys").checked) return;
  if (event.key === "n") go(1);
  if (event.key === "p") go(-1);
});
choose(document.querySelector("input[name=view]:checked").value);
