'use strict';
// After the tests: where one of them left something open (a timer, a process, a worker), the run fails instead of
// hanging.

module.exports = () => {
    setTimeout(() => {
        console.error(`A test left this open: ${process.getActiveResourcesInfo().join(', ')}`);
        process.exit(1);
    }, 5000).unref();
};
