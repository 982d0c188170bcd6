"use strict";

// Galleries: which boxes show, and in which style, follows from each box's score and the slider.
function applyThreshold(slider) {
  const section = slider.closest("section");
  const threshold = Number(slider.value);
  section.querySelector(".threshold-value").textContent = threshold.toFixed(2);
  const total = { found: 0, all: 0, wrong: 0, kept: 0 };
  for (const scene of section.querySelectorAll(".scene")) {
    let found = 0, wrong = 0;
    for (const box of scene.querySelectorAll(".truth g")) {
      const isFound = Number(box.dataset.score) >= threshold;
      box.classList.toggle("right", isFound);
      box.classList.toggle("wrong", !isFound);
      found += isFound;
      total.all += 1;
    }
    for (const box of scene.querySelectorAll(".guess g")) {
      const isKept = Number(box.dataset.score) >= threshold;
      box.classList.toggle("off", !isKept);
      wrong += isKept && box.classList.contains("wrong");
      total.kept += isKept;
    }
    scene.querySelector("[data-found]").textContent = found;
    scene.querySelector("[data-false]").textContent = wrong;
    total.found += found;
    total.wrong += wrong;
  }
  section.querySelector(".threshold-sum").textContent =
    `${total.found} of ${total.all} objects found, ${total.wrong} false detections on these pictures`;
}
for (const slider of document.querySelectorAll(".controls input[type=range]")) {
  slider.closest(".controls").hidden = false;
  slider.addEventListener("input", () => applyThreshold(slider));
  applyThreshold(slider);
}

// Pictures: a click, Enter or Space opens both panels, with labels, in the dialog.
const viewer = document.querySelector("#viewer");
for (const panels of document.querySelectorAll(".scene .panels")) {
  const button = document.createElement("button");
  button.type = "button";
  button.className = "open";
  button.setAttribute("aria-label", "Enlarge, with labels");
  panels.replaceWith(button);
  button.append(panels);
  button.addEventListener("click", () => {
    viewer.querySelector(".stage").replaceChildren(panels.cloneNode(true));
    viewer.showModal();
  });
}
for (const image of document.querySelectorAll(".plot img")) {
  const button = document.createElement("button");
  button.type = "button";
  button.className = "open";
  button.setAttribute("aria-label", `Enlarge: ${image.alt}`);
  image.replaceWith(button);
  button.append(image);
  button.addEventListener("click", () => {
    const copy = image.cloneNode();
    copy.className = "single";
    viewer.querySelector(".stage").replaceChildren(copy);
    viewer.showModal();
  });
}
viewer.addEventListener("click", (event) => {
  if (event.target === viewer) viewer.close();
});

// Charts: the legend reads the values at the pointer; away from it, the last ones.
for (const chart of document.querySelectorAll(".chart")) {
  const svg = chart.querySelector("svg");
  const [x0, x1, left, right, y0, y1, bottom, top] = svg.dataset.scale.split(" ").map(Number);
  const lines = [...svg.querySelectorAll(".line")].map((line) => [...line.points]);
  const outputs = [...chart.querySelectorAll("output[data-last]")];
  const at = chart.querySelector("[data-at]");
  const cursor = chart.querySelector(".cursor");
  const nearest = (points, x) =>
    points.reduce((a, b) => (Math.abs(b.x - x) < Math.abs(a.x - x) ? b : a));
  const format = (value) =>
    value !== 0 && Math.abs(value) < 1e-3 ? value.toExponential(1) : String(Number(value.toPrecision(3)));
  svg.addEventListener("pointermove", (event) => {
    const box = svg.getBoundingClientRect();
    const x = ((event.clientX - box.left) / box.width) * svg.viewBox.baseVal.width;
    const anchor = nearest(lines[0], x).x;
    cursor.setAttribute("x1", anchor);
    cursor.setAttribute("x2", anchor);
    at.textContent = Math.round(x0 + ((anchor - left) / (right - left)) * (x1 - x0));
    lines.forEach((points, i) => {
      const y = nearest(points, anchor).y;
      const value = y0 + ((y - bottom) / (top - bottom)) * (y1 - y0);
      outputs[i].textContent = format("log" in svg.dataset ? 10 ** value : value);
    });
    chart.classList.add("reading");
  });
  svg.addEventListener("pointerleave", () => {
    chart.classList.remove("reading");
    at.textContent = "the end";
    outputs.forEach((output) => { output.textContent = output.dataset.last; });
  });
}

// Tables: a header button sorts by its column, numbers first from the highest.
for (const header of document.querySelectorAll("table.sortable thead th")) {
  const button = document.createElement("button");
  button.type = "button";
  button.append(...header.childNodes);
  header.append(button);
  button.addEventListener("click", () => {
    const column = header.cellIndex;
    const descending = header.getAttribute("aria-sort") !== "descending";
    const body = header.closest("table").tBodies[0];
    const key = (row) => row.cells[column].dataset.value ?? row.cells[column].textContent;
    const rows = [...body.rows].sort((a, b) => {
      const [p, q] = [key(a), key(b)];
      if (p === "" || q === "") return (p === "") - (q === "");
      const order = header.dataset.kind === "number" ? p - q : p.localeCompare(q);
      return descending ? -order : order;
    });
    body.append(...rows);
    for (const other of header.parentNode.cells) other.removeAttribute("aria-sort");
    header.setAttribute("aria-sort", descending ? "descending" : "ascending");
  });
}
for (const search of document.querySelectorAll(".search")) {
  search.hidden = false;
  search.addEventListener("input", () => {
    const wanted = search.value.trim().toLowerCase();
    for (const row of document.querySelectorAll(`#${search.dataset.table} tbody tr`)) {
      row.hidden = !row.cells[0].textContent.toLowerCase().includes(wanted);
    }
  });
}

for (const pre of document.querySelectorAll(".command pre")) {
  if (!navigator.clipboard) break;
  const button = document.createElement("button");
  button.type = "button";
  button.className = "copy";
  button.textContent = "Copy";
  button.addEventListener("click", async () => {
    await navigator.clipboard.writeText(pre.textContent);
    button.textContent = "Copied";
    setTimeout(() => { button.textContent = "Copy"; }, 1500);
  });
  pre.after(button);
}
