// Makes each line of code a block of its own, so that what wraps stands further in than the next line's begin.
document.addEventListener("DOMContentLoaded", () => {
  for (const code of document.querySelectorAll("div.highlight pre")) {
    const lines = code.innerHTML.replace(/\n$/, "").split("\n");
    code.innerHTML = lines.map((line) => `<span class="line">${line}\n</span>`).join("");
  }
});
