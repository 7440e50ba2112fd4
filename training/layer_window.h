// Which layers' weights are there, where a few are held at a time, and which are fetched when.
#pragma once

#include <array>

namespace notellm {

class LayerWindow {
 public:
  static constexpr int held_layers = 3;  // read, read next while that is still read, on its way

  explicit LayerWindow(int layers) : layers_(layers) { forget(); }

  // Layer `layer` is read from now on. What has to be fetched: it itself, unless it is there; then the layer that
  // probably comes next, −1: none. Both count as there afterwards. A backward pass begins with the layer with which the
  // forward pass ended. A wrong guess costs time only.
  struct Fetch {
    bool itself;
    int next;
  };
  Fetch begins(int layer) {
    const bool itself = !take(layer);
    const bool backward = layer + 1 == last_ || (layer == last_ && layer + 1 == layers_);
    const int next = backward ? layer - 1 : layer + 1;
    last_ = layer;
    return {itself, next >= 0 && next < layers_ && !take(next) ? next : -1};
  }
  // What is there has become old.
  void forget() { held_.fill(-1); }

 private:
  bool take(int layer) {
    int& held = held_[static_cast<size_t>(layer % held_layers)];
    const bool there = held == layer;
    held = layer;
    return there;
  }
  int layers_, last_ = -1;
  std::array<int, held_layers> held_;
};

}  // namespace notellm
