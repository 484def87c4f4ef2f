"use strict";
document.documentElement.classList.remove("no-script");
const $ = (selector, root = document) => [...root.querySelectorAll(selector)];
const dialog = document.querySelector("dialog"), label = document.querySelector("#value");
let figures = [], shown = 0;

document.querySelector("#opacity").addEventListener("input", event =>
  document.documentElement.style.setProperty("--opacity", event.target.value));

// classes that are explained can be hidden and shown
for (const button of $(".classes button")) button.addEventListener("click", () => {
  const on = button.getAttribute("aria-pressed") !== "true";
  button.setAttribute("aria-pressed", on);
  for (const figure of $(`[data-target="${CSS.escape(button.dataset.shows)}"]`, button.closest("section"))) figure.hidden = !on;
});

// values under the pointer, read off a grey picture of the map
const probes = new Map();
async function probe(figure) {
  if (!probes.has(figure)) {
    const image = new Image();
    image.src = figure.dataset.probe;
    await image.decode();
    const canvas = document.createElement("canvas");
    canvas.width = image.width; canvas.height = image.height;
    const context = canvas.getContext("2d", { colorSpace: "srgb" });
    context.drawImage(image, 0, 0);
    probes.set(figure, context.getImageData(0, 0, image.width, image.height));
  }
  return probes.get(figure);
}
async function hover(event) {
  const figure = event.target.closest("figure[data-probe]");
  const image = event.target.closest(".picture")?.querySelector("img");
  label.style.display = "none";
  if (!figure || !image) return;
  const box = image.getBoundingClientRect();
  const x = (event.clientX - box.left) / box.width, y = (event.clientY - box.top) / box.height;
  if (x < 0 || y < 0 || x >= 1 || y >= 1) return;
  const grid = await probe(figure), column = Math.floor(x * grid.width), row = Math.floor(y * grid.height);
  const { low, high } = figure.dataset;
  const value = +low + (high - low) * grid.data[4 * (row * grid.width + column)] / 255;
  label.textContent = `${value.toPrecision(3)}  at row ${row + 1} of ${grid.height}, column ${column + 1} of ${grid.width}`;
  label.style.cssText += `;display:block;left:${Math.min(event.clientX + 14, innerWidth - 260)}px;top:${event.clientY + 16}px`;
}
document.addEventListener("pointermove", hover);

// a click enlarges; arrows go on, within the page's order
function enlarge(index) {
  shown = (index + figures.length) % figures.length;
  const figure = figures[shown], picture = figure.querySelector(".picture").cloneNode(true);
  const image = picture.querySelector("img");
  if (image?.dataset.colours) {
    const summed = image.src;
    image.title = "click: the three colours apart";
    image.addEventListener("click", () => { image.src = image.src === summed ? image.dataset.colours : summed; });
  }
  const title = document.createElement("p");
  title.textContent = figure.dataset.title;
  const body = document.createElement("figure");
  for (const key of ["probe", "low", "high"]) if (figure.dataset[key]) body.dataset[key] = figure.dataset[key];
  body.style.width = "auto";
  body.append(picture, title);
  body.append(...$(".bar, .ends", figure).map(part => part.cloneNode(true)));
  dialog.replaceChildren(body);
  if (!dialog.open) dialog.showModal();
}
function open(figure) {
  figures = $("figure[data-title]").filter(one => one.offsetParent !== null);
  enlarge(figures.indexOf(figure));
}
document.addEventListener("click", event => {
  const figure = event.target.closest("figure[data-title]");
  if (figure && !event.target.closest("details")) open(figure);
  if (event.target === dialog) dialog.close();
});
document.addEventListener("keydown", event => {
  if (event.target.matches("input")) return;
  if (event.key === "b") document.body.classList.toggle("blink");
  if (event.key === "Enter" && event.target.matches("figure[data-title]")) open(event.target);
  if (!dialog.open) return;
  if (event.key === "ArrowRight") enlarge(shown + 1);
  if (event.key === "ArrowLeft") enlarge(shown - 1);
});
