'use strict';

// Compiles the programs that tests use, in test/native/ and of llama.cpp, before the tests, which run at once.
const { execFileSync } = require('node:child_process');
const path = require('node:path');

module.exports = () => {
    execFileSync('cmake', ['--build', path.resolve(__dirname, '..', 'build', 'cmake'), '--target', 'test-tools'], {
        stdio: ['ignore', 'ignore', 'inherit']
    });
};
