"use strict";
for (const figure of document.querySelectorAll(".compare")) {
  const slider = figure.querySelector("input");
  const stack = figure.querySelector(".stack");
  const update = () => {
    figure.style.setProperty("--cut", `${slider.value}%`);
    slider.setAttribute("aria-valuetext", `${slider.value} percent`);
  };
  const follow = (event) => {
    if (!(event.buttons & 1)) return;
    const box = stack.getBoundingClientRect();
    slider.value = ((event.clientX - box.left) / box.width) * 100;
    update();
  };
  slider.addEventListener("input", update);
  stack.addEventListener("pointerdown", follow);
  stack.addEventListener("pointermove", follow);
  update();
}
