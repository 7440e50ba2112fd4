// EXPECT_ERROR(kind, "part of the message", statement): the statement throws Error of that kind, whose message says
// that.
#pragma once

#include <gtest/gtest.h>

#include <string>

#include "runtime/error.h"

#define EXPECT_ERROR(expected_kind, part, ...)                                                                        \
  try {                                                                                                               \
    __VA_ARGS__;                                                                                                      \
    ADD_FAILURE() << #__VA_ARGS__ << " threw nothing";                                                                \
  } catch (const ::notellm::Error& error) {                                                                           \
    EXPECT_EQ(static_cast<int>(error.kind()), static_cast<int>(::notellm::ErrorKind::expected_kind)) << error.what(); \
    EXPECT_NE(std::string(error.what()).find(part), std::string::npos) << error.what();                               \
  }
