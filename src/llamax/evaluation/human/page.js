// Keys 1 to 4 vote, R goes to the reason, Esc leaves it, Z goes back. A key counts once per item, never while held.
(() => {
  const choices = { 1: "choose-left", 2: "choose-tie", 3: "choose-bad", 4: "choose-right" };
  const find = (id) => { const at = document.getElementById(id); return at && (at.matches("button") ? at : at.querySelector("button")) || at; };
  const seen = (at) => at && at.offsetParent !== null;
  document.addEventListener("keydown", (event) => {
    const typing = event.target.matches && event.target.matches("input, textarea");
    if (event.key === "Escape" && typing) { event.target.blur(); return; }
    if (typing || event.repeat || event.ctrlKey || event.metaKey || event.altKey) return;
    const name = choices[event.key] || { z: "back", Z: "back" }[event.key];
    if (name) {
      const button = find(name);
      if (seen(button)) { event.preventDefault(); button.click(); }
    } else if (event.key === "r" || event.key === "R") {
      const field = document.querySelector("#reason textarea, #reason input");
      if (seen(field)) { event.preventDefault(); field.focus(); }
    }
  });
  // A new pair begins at its top: both answers, and the page on a phone.
  let last = null;
  new MutationObserver(() => {
    const field = document.querySelector("#shown textarea, #shown input");
    if (!field || field.value === last) return;
    last = field.value;
    document.querySelectorAll(".scroll").forEach((at) => { at.scrollTop = 0; });
    window.scrollTo({ top: 0 });
    const typed = document.activeElement;
    if (typed && typed.closest && typed.closest("#reason, #buttons")) typed.blur();
  }).observe(document.documentElement, { childList: true, subtree: true, characterData: true });
  // One look for everybody: gradio would follow the rater's dark mode.
  const light = () => document.querySelectorAll(".dark").forEach((at) => at.classList.remove("dark"));
  new MutationObserver(light).observe(document.documentElement, { attributes: true, attributeFilter: ["class"], subtree: true });
  document.documentElement.lang = "en";
})();
