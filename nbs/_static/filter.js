/* A field above a long table that hides the rows without the typed words. */
document.addEventListener("DOMContentLoaded", () => {
  for (const box of document.querySelectorAll("div.pevl-filter")) {
    const rows = [...box.querySelectorAll("tbody tr")];
    if (rows.length < 6) continue;
    const text = rows.map((row) => row.textContent.toLowerCase());
    const field = document.createElement("input");
    field.type = "search";
    field.placeholder = "show rows with …";
    field.setAttribute("aria-label", "show only rows with these words");
    field.addEventListener("input", () => {
      const words = field.value.toLowerCase().split(/\s+/).filter(Boolean);
      rows.forEach((row, i) => { row.hidden = !words.every((w) => text[i].includes(w)); });
    });
    box.prepend(field);
  }
});
