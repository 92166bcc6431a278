// Turns figures of a page into charts to explore, and shows of the worked examples those that are asked for. Without it
// the page has everything as well: figures as they are drawn, and all examples.

const dark = matchMedia("(prefers-color-scheme: dark)").matches;
// Errors alone are logged: that nothing was measured for a choice can be seen.
const options = { actions: false, ast: true, logLevel: 1, renderer: "svg", tooltip: { theme: dark ? "dark" : "light" } };

for (const figure of document.querySelectorAll("figure:has(.chart)")) {
  const chart = figure.querySelector(".chart");
  const drawn = figure.querySelector("img");
  const help = figure.querySelector(".chart-help");
  const words = figure.querySelector("figcaption > span");
  const button = figure.querySelector("button");
  let empty = true;
  const explore = (exploring) => {
    chart.hidden = !exploring;
    help.hidden = !exploring;
    if (drawn) drawn.hidden = exploring;
    if (words) words.hidden = exploring;
    button.textContent = exploring && drawn ? "As drawn" : "Explore";
    button.hidden = exploring && !drawn;
    if (exploring && empty) vegaEmbed(chart, JSON.parse(figure.querySelector("script").textContent), options);
    empty = empty && !exploring;
  };
  button.addEventListener("click", () => explore(chart.hidden));
  explore(figure.matches("#figure-1"));
}

const asked = document.querySelector("#asked");
if (asked) {
  const menus = [...asked.querySelectorAll("select")];
  const fits = (example) => menus.every((menu) => ["", example.dataset[menu.name]].includes(menu.value));
  asked.addEventListener("input", () => {
    for (const group of document.querySelectorAll(".examples")) {
      const examples = [...group.querySelectorAll(".example")];
      for (const example of examples) example.hidden = !fits(example);
      group.hidden = examples.every((example) => example.hidden);
    }
    const shown = document.querySelectorAll(".example:not([hidden])").length;
    asked.querySelector("output").textContent = `${shown} of ${document.querySelectorAll(".example").length}`;
  });
  asked.hidden = false;
}
